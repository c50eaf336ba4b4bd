"""Wires push: the delivery worker, the channel of each app, and the providers that a channel sends by."""
