"""Decides about events, without I/O: their order, when they are retried, and what their senders may bring about."""
