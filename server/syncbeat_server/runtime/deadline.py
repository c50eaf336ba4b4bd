"""Carries the deadline of a call down to whatever it waits for, without an argument in every signature.

It belongs to the context of the call. What works for several calls at once, as a batch, runs in an empty context and
has none.
"""

from __future__ import annotations

import math
from contextvars import Context, ContextVar, copy_context

from syncbeat_server.clock import SystemClock

_monotonic = SystemClock.monotonic  # asking a loop for its time would take three times as long
_ends_at: ContextVar[float] = ContextVar("deadline", default=math.inf)


def set_deadline(seconds: float) -> None:
    """Let the work of this context end in so many seconds."""
    _ends_at.set(_monotonic() + seconds)


def without_deadline() -> Context:
    """Return a copy of this context for work that others come to share, and that goes by no single caller's time."""
    copied = copy_context()
    copied.run(_ends_at.set, math.inf)
    return copied


def time_left_s() -> float:
    """Return the seconds that are left to the work of this context; infinite without a deadline."""
    ends_at = _ends_at.get()
    return ends_at if ends_at == math.inf else ends_at - _monotonic()
