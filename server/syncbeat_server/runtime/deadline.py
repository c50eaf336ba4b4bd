"""Carries the deadline of a call down to whatever it waits for, without an argument in every signature.

It belongs to the context of the call. What works for several calls at once, as a batch, runs in an empty context and
has none.
"""

from __future__ import annotations

import math
from contextvars import Context, ContextVar, copy_context

from syncbeat_server.clock import SystemClock

_monotonic = SystemClock.monotonic  # asking a loop for its time would take three times as long
ends_at: ContextVar[float] = ContextVar("deadline", default=math.inf)
"""The monotonic time (`SystemClock`) at which the work of this context ends. Set by `set_deadline`; the handlers of
calls set it themselves, since a function more costs 1 % of `auth_interceptor_us`."""


def set_deadline(seconds: float) -> None:
    """Let the work of this context end in so many seconds."""
    ends_at.set(_monotonic() + seconds)


def without_deadline() -> Context:
    """Return a copy of this context for work that others come to share, and that goes by no single caller's time."""
    copied = copy_context()
    copied.run(ends_at.set, math.inf)
    return copied


def time_left_s() -> float:
    """Return the seconds that are left to the work of this context; infinite without a deadline."""
    end_s = ends_at.get()
    return end_s if end_s == math.inf else end_s - _monotonic()
