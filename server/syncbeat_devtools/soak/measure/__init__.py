"""Bounded records of a run: histograms, a series over time, and the file that a run resumes from."""
