"""Serves HTTP: the endpoint of operators, on a listener of its own."""
