"""Bounds on calls to dependencies."""
