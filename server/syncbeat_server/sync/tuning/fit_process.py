"""A process of its own that fits one prior: histories as JSON on its standard input, the prior on its standard output.

Started by `fitting.py`. The search takes seconds of a core, which no event loop must wait for, and 50 MiB for as long.
"""

from __future__ import annotations

import os
import sys

import orjson

from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.sync.policy.belief import Prior
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.tuning.prior_fit import fit

MOST_S = 20.0
"""After so long it answers the best that it has."""
_NICE = 10


def main() -> None:
    """Read, fit, write."""
    os.nice(_NICE)
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read(), SystemClock()))


def answer(question: bytes, clock: Clock) -> bytes:
    """What `main` writes: the prior, how many scopes and changes it was fitted to; `null` for too few."""
    asked = orjson.loads(question)
    ends_at = clock.monotonic() + MOST_S
    histories = [History(start_s, end_s, changes) for start_s, end_s, changes in asked["histories"]]
    fitted = fit(histories, Prior(*asked["before"]), lambda: clock.monotonic() >= ends_at)
    return orjson.dumps(None if fitted is None else (tuple(fitted.prior), fitted.scopes, fitted.changes))


if __name__ == "__main__":
    main()
