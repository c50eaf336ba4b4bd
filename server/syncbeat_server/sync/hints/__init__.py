"""Builds the hints of devices that ask."""
