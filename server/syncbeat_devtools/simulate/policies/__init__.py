"""Polling policies, policies with perfect knowledge, and lower bounds."""
