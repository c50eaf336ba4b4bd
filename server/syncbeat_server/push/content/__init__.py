"""Fills in the texts of notifications, and the token by which a push is acknowledged. Pure."""
