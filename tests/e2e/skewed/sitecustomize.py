"""Python runs this at its start where this folder is on PYTHONPATH: the host's clock is CLOCK_AHEAD_S seconds ahead."""

from __future__ import annotations

import os
from datetime import datetime, timedelta

from syncbeat_server.clock import SystemClock

_true = SystemClock.now
_ahead = timedelta(seconds=float(os.environ.get("CLOCK_AHEAD_S", "0")))


def _now(clock: SystemClock) -> datetime:
    return _true(clock) + _ahead


SystemClock.now = _now  # type: ignore[method-assign,assignment]  # as if the host's were so
