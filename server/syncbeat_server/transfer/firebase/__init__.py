"""Imports users of Firebase Auth."""
