"""Compares an export of the Realtime Database with what is stored, and mends the differences one way."""
