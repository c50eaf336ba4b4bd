"""Doors that are not gRPC: the HTTP endpoint of operators."""
