"""Sends changes and hints to connected clients as they happen."""
