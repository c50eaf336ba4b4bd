"""Validation and parsing of FCM messages."""
