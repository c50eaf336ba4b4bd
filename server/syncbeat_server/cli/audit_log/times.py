"""Reads the time of an option."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime


def utc_time(text: str) -> datetime:
    """Return a time by ISO 8601; without a zone it is UTC. Raises ArgumentTypeError: it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("want a time by ISO 8601, as 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
