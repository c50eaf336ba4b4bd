"""Decides figures from counts, without I/O."""
