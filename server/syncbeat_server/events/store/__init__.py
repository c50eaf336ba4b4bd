"""Holds the SQL of events and of what they are ordered by."""
