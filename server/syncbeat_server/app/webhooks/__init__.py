"""Wires the door of webhooks: the sources that the apps file describes, and what becomes of their events."""
