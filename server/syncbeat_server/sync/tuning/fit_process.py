"""Fits one prior and rhythm in a process of its own: reads histories as JSON on its standard input, and writes both.

Started by `nightly_fit`. The search takes seconds of a core, which no event loop may wait for, and 50 MiB meanwhile.
"""

from __future__ import annotations

import os
import sys

import orjson

from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.policy.rhythm import WeekEvidence
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.tuning.prior_fit import fit
from syncbeat_server.sync.tuning.rhythm_fit import learn_rhythm

MAX_FIT_S = 20.0
"""Seconds after which the best prior so far is returned."""
_NICE = 10


def main() -> None:
    """Read the request, fit, and write the answer."""
    os.nice(_NICE)
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read(), SystemClock()))


def answer(request: bytes, clock: Clock) -> bytes:
    """Return the answer as JSON: what was fitted to how many scopes and changes, or `null`."""
    parsed = orjson.loads(request)
    ends_at = clock.monotonic() + MAX_FIT_S
    histories = [History(start_s, end_s, changes) for start_s, end_s, changes in parsed["histories"]]
    prior, week = parsed["known"]
    fitted = fit(histories, Prior(*prior), lambda: clock.monotonic() >= ends_at)
    if fitted is None:
        return orjson.dumps(None)
    learned = learn_rhythm(histories, fitted.prior, WeekEvidence(*week))
    return orjson.dumps((tuple(fitted.prior), fitted.scopes, fitted.changes, tuple(learned)))


if __name__ == "__main__":
    main()
