"""Keeps the audit log: who did what sensitive thing when, to whom, from where."""
