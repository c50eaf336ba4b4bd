"""Decides limits. Pure: times and what is in use are arguments."""
