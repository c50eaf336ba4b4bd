"""Combines several features in one transaction: publishes, and the lifecycle of users."""
