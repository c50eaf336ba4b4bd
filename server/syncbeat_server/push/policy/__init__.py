"""Decides what becomes of deliveries. Pure: no I/O, and the time is an argument."""
