"""Runs work fairly on one event loop: batches it, bounds it, and moves slow functions to worker processes."""
