"""Encodes the contents of the change feed: merge patches, numbers, resume tokens. Pure."""
