"""Wires the events of other systems."""
