"""Adds up the metrics of the processes of a machine (ADR 178)."""
