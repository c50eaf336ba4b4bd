"""Verification of access tokens: keys, signatures and claims."""
