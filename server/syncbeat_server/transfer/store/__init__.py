"""Reads and writes the tables of the transfer feature."""
