"""A day of a fleet through the real policy code, on a fake clock.

Nothing here decides an interval: every one is asked of `syncbeat_server.sync.policy`, by the rivals' names too.
"""
