"""Checks requests against the field rules of the contract."""
