"""Solves each policy for its target and varies the assumptions."""
