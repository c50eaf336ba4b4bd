"""Runs each RPC: reads the request, checks caller and fields, bounds the call, and turns errors into statuses."""
