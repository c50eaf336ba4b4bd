"""Reads and writes the change feed of a scope."""
