"""Waking devices that are not connected."""
