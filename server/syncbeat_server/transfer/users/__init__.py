"""Exports and erases what is stored of one user."""
