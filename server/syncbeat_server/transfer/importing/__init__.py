"""Imports an export of the Realtime Database: in batches, at the database's pace, and on from where it was killed."""
