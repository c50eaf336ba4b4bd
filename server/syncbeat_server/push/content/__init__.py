"""Renders the texts of notifications, and makes the token that acknowledges a push. Pure."""
