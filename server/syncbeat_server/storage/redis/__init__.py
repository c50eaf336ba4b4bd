"""Redis: wake-ups, shared counters and rates, and the diagnosis of its failures. Losing it loses no data."""
