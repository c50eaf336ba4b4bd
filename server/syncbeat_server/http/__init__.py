"""Serves HTTP: the endpoint of operators, and the door of webhooks, each on a listener of its own."""
