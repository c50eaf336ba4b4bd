"""Moves data in and out."""
