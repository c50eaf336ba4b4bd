"""Carries deliveries from the queue to the providers, and keeps the queue in order."""
