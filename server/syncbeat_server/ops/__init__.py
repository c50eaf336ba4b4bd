"""Configuration, logs, metrics, health."""
