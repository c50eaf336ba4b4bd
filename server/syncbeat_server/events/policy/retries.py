"""Decides when the effects of a FAILED event are tried again, and which errors make one."""

from __future__ import annotations

from syncbeat_server.errors import DeadlineExceeded, DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.events.model import EventRule

_MAX_DOUBLINGS = 30
MAX_FAILURE_CHARACTERS = 500
"""The longest cause of a failure."""


def retry_delay_s(rule: EventRule, attempts: int) -> float:
    """Return the seconds until the next attempt after so many: 1, 2, 4, 8 and on, up to the longest."""
    doubled: float = rule.first_retry_s * 2.0 ** min(max(attempts - 1, 0), _MAX_DOUBLINGS)
    return min(doubled, rule.longest_retry_s)


def is_failure(error: SyncbeatError) -> bool:
    """Tell an error of the effects, which is recorded, from one of the circumstances.

    After the latter nothing is recorded, and the sender comes again.
    """
    return not isinstance(error, Overloaded | DependencyDown | DeadlineExceeded)


def failure_text(error: SyncbeatError) -> str:
    """Return the cause of a failure, for people. Messages of errors are written for callers."""
    return f"{error.reason}: {error.message}"[:MAX_FAILURE_CHARACTERS]
