"""Simulates a day of a fleet with the real policy code, on a fake clock.

The simulator decides no interval: `syncbeat_server.sync.policy` computes each, those of comparison policies too.
"""
