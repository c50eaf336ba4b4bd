"""Moves what apps keep into Syncbeat and out of it: exports of the Realtime Database, and users."""
