"""Scripted faults: the plan, their responses, and their injection into requests."""
