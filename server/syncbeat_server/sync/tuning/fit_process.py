"""Fits one prior in a process of its own: reads histories as JSON on its standard input, and writes the prior.

Started by `nightly_fit`. The search takes seconds of a core, which no event loop may wait for, and 50 MiB meanwhile.
"""

from __future__ import annotations

import os
import sys

import orjson

from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.sync.policy.fit_samples import History
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.tuning.prior_fit import fit

MAX_FIT_S = 20.0
"""Seconds after which the best prior so far is returned."""
_NICE = 10


def main() -> None:
    """Read the request, fit, and write the answer."""
    os.nice(_NICE)
    sys.stdout.buffer.write(answer(sys.stdin.buffer.read(), SystemClock()))


def answer(request: bytes, clock: Clock) -> bytes:
    """Return the answer as JSON: the prior and the numbers of scopes and changes it was fitted to, or `null`."""
    parsed = orjson.loads(request)
    ends_at = clock.monotonic() + MAX_FIT_S
    histories = [History(start_s, end_s, changes) for start_s, end_s, changes in parsed["histories"]]
    fitted = fit(histories, Prior(*parsed["before"]), lambda: clock.monotonic() >= ends_at)
    return orjson.dumps(None if fitted is None else (tuple(fitted.prior), fitted.scopes, fitted.changes))


if __name__ == "__main__":
    main()
