"""Wires what follows the apps file while a process runs: issuers, keys and secrets of each app, and what one left."""
