"""Reads when an export was begun, of `import-rtdb`, `verify` and `reconcile`."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from syncbeat_server.errors import ConfigurationError

_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


def source_time(text: str) -> datetime:
    """Return a time by ISO 8601 with its zone. Raises ArgumentTypeError: it is none, or says no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: want a time as 2026-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r}: want an offset, such as Z for UTC")
    return moment.astimezone(UTC)


def check_source_time(moment: datetime) -> None:
    """Refuse a time to come, to which all live writes until then would be older, and one that no value can have.

    Raises:
        ConfigurationError: it is in the future, or before 1970.
    """
    if moment < _FIRST:
        raise ConfigurationError("--source-time: it is before 1970, as no time of a value may be")
    if moment > datetime.now(UTC):  # noqa: TID251  # as an operator's clock has it
        raise ConfigurationError("--source-time: it is in the future: live writes would be taken for older ones")
