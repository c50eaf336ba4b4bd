"""What `make bench` runs: one file for each figure, each measured beside its baseline in the same run."""
