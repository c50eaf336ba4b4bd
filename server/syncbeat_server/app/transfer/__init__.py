"""Wiring of the commands that move data in and out."""
