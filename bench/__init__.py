"""Benchmarks of `make bench`: one module per figure, each measured beside its baseline in the same run."""
