"""Reads whole apps in one snapshot: SQL."""
