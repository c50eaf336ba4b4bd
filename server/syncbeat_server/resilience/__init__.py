"""Retry, deadlines: how calls to others are bounded."""
