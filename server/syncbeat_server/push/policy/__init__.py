"""Decides about deliveries. Pure."""
