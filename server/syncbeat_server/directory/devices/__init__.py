"""Devices: moves of their registration tokens, and the marks of those that are connected."""
