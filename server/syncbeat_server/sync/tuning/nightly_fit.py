"""Fits each app's prior once a day to the changes of some of its scopes. Any process may do it; one does.

The app's row grants the turn, and keeps the other processes away for an hour, which is the cost of a crash. The fit
itself runs in a child process (`fit_process`), so that only this task waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence

import orjson

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.process_group import launch_prefix
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.policy.fit_samples import MAX_SCOPES, WANTED_SCOPES, Fitted, History, Known
from syncbeat_server.sync.policy.rhythm import WeekEvidence
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.store import change_samples

_log = logging.getLogger(__name__)

_CHECK_EVERY_S = 600.0
_TURN_S = 3600.0 - 60.0
_FIT_EVERY_S = 23 * 3600.0
_LAG_S = 120.0
_MAX_COUNTED = 1_000_000
_MAX_SHARE_RATIO = 2.0  # of the wanted and the present share, from which on it is changed
_FIT_TIMEOUT_S = 60.0

FitPrior = Callable[[Sequence[History], Known], Awaitable[Fitted | None]]
"""Fits a prior and the evidence of a rhythm to histories, beginning with others; None when they are too few."""


class NightlyFit:
    """Maintains each app's sample and prior."""

    def __init__(
        self, database: Database, apps: Callable[[], Iterable[str]], clock: Clock, fit_prior: FitPrior | None = None
    ) -> None:
        """`apps()` returns the configured apps, and is called anew each time."""
        self._database = database
        self._apps = apps
        self._clock = clock
        self._fit_prior = fit_prior or fit_in_child

    async def run(self) -> None:
        """Maintain all apps, for ever."""
        while True:
            await self._clock.sleep(_CHECK_EVERY_S)
            for app_id in list(self._apps()):
                try:
                    await self.fit_if_due(app_id)
                except SyncbeatError as error:
                    _log.warning("cannot fit a prior now", extra={"app_id": app_id, "reason": error.reason})
                except (OSError, ValueError, TimeoutError):
                    _log.exception("a prior could not be fitted; the old one stays", extra={"app_id": app_id})

    async def fit_if_due(self, app_id: str) -> Fitted | None:
        """Claim the app's turn; if granted, fit its prior if due, and adjust the size of its sample.

        Returns None unless a new prior was fitted.

        Raises:
            DependencyDown: the database does not answer.
            OSError, ValueError, TimeoutError: the fit failed.
        """
        async with self._database.connection() as conn:
            turn = await change_samples.claim_fit_turn(conn, app_id, _TURN_S, _FIT_EVERY_S, _LAG_S)
            if turn is None:
                return None
            histories = await change_samples.read_histories(conn, app_id, turn, MAX_SCOPES) if turn.due else []
            wanted = min(
                1.0, WANTED_SCOPES / max(1, await change_samples.count_active_scopes(conn, app_id, _MAX_COUNTED))
            )
            if not 1 / _MAX_SHARE_RATIO < wanted / turn.share < _MAX_SHARE_RATIO:
                await change_samples.set_sample_share(conn, app_id, wanted)
        known = Known(turn.prior or DEFAULT_PRIOR, turn.week)
        fitted = await self._fit_prior(histories, known) if histories else None
        if fitted is not None:
            async with self._database.connection() as conn:
                await change_samples.save_fit(conn, app_id, fitted)
            learned = {**fitted.prior._asdict(), "echo": fitted.week.echo}
            _log.info("a prior was fitted", extra={"app_id": app_id, **learned})
        return fitted


async def fit_in_child(histories: Sequence[History], known: Known) -> Fitted | None:
    """Fit in a process of its own, which ends when this one does.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it takes too long.
        ValueError: it failed.
    """
    before = tuple(known.prior), tuple(known.week)
    request = orjson.dumps({"histories": [tuple(history) for history in histories], "known": before})
    child = await asyncio.create_subprocess_exec(
        *launch_prefix(signal.SIGKILL),
        sys.executable,
        "-m",
        "syncbeat_server.sync.tuning.fit_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_FIT_TIMEOUT_S):
            answer, _ = await child.communicate(request)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    fitted = orjson.loads(answer)
    if fitted is None:
        return None
    prior, scopes, changes, (in_hours, seconds, echo) = fitted
    week = WeekEvidence(tuple(in_hours), tuple(seconds), echo)
    return Fitted(Prior(*prior), scopes, changes, week)
