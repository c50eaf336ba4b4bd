"""Subjects of several issuers that are one person: link tokens, the rules of joining, imported users."""
