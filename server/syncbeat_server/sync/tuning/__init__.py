"""Learns an app's price and prior from what its devices met."""
