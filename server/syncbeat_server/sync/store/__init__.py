"""Reads and writes the tables of the sync feature, one module per table family."""
