"""Decides what a run comes to, from its records alone. Pure."""
