"""Writes what is stored of a scope, an app or a user as JSON, piece by piece, from one snapshot."""
