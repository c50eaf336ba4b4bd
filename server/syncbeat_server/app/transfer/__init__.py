"""Wires what moves in and out: one module a command."""
