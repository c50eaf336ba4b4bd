"""Decides when devices sync next, and serves the changes that they sync."""
