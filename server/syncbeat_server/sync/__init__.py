"""When a device should sync next, and what changed."""
