"""Runs work fairly on one event loop: batches it, bounds it, and moves what is slow to child processes."""
