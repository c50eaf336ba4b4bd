"""Benchmarks for `make bench`: one file for each figure, each measured beside its baseline in the same run."""
