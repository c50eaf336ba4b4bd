"""Reads and writes the JSON of the Realtime Database, with its odd shapes. Pure."""
