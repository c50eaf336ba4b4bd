"""Tells what came of a run: progress, JSON, and a page with plots."""
