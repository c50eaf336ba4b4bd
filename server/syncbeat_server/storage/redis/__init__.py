"""Redis: wake-ups, shared counters, and how its failures are told apart. Losing it loses no data."""
