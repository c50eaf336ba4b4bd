"""Simulated devices: their feeds, logs to replay, and the push channel."""
