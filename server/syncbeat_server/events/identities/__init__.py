"""Subjects of several issuers that become one person, across all features."""
