"""Wiring for operators: health, and the addresses of the stores."""
