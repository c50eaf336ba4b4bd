"""Learns an app's price of staleness and prior from the experience of its devices."""
