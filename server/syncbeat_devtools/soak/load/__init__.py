"""Drives a deployment: a fleet that polls as its hints say, and calls that come by the plan."""
