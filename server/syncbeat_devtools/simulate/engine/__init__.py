"""Plays the days of devices in parallel processes and counts the outcomes."""
