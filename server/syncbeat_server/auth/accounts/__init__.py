"""Cached answers to "may this caller still call": account status from the database, and verified tokens."""
