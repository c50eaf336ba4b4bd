"""Reads and writes the tables of the directory: devices, registration tokens, members, preferences."""
