"""Each app's prior is fitted once a day, to how some of its scopes changed. Any process may do it; one does.

Whose turn it is, the app's row says: who takes it keeps the others away for an hour. A crash costs that hour. The fit
itself runs in a child process (`fitter.py`), so that nothing here waits for it but this task.
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
from syncbeat_server.sync.policy.belief import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.policy.fit_samples import Fitted, History
from syncbeat_server.sync.store import app_tuning

_log = logging.getLogger(__name__)

_LOOK_EVERY_S = 600.0
_TURN_S = 3600.0 - 60.0
_FIT_EVERY_S = 23 * 3600.0
_LAG_S = 120.0
_SCOPES = 300.0
_MOST_SCOPES = 1_000
_MOST_COUNTED = 1_000_000
_OFF_BY = 2.0
_CHILD_S = 60.0

Solve = Callable[[Sequence[History], Prior], Awaitable[Fitted | None]]
"""Fits a prior to histories, from another one on; None when they are too few."""


class NightlyFit:
    """Looks after each app's sample and prior."""

    def __init__(
        self, database: Database, apps: Callable[[], Iterable[str]], clock: Clock, solve: Solve | None = None
    ) -> None:
        """`apps` names those that are configured, read anew each time."""
        self._database = database
        self._apps = apps
        self._clock = clock
        self._solve = solve or fit_in_child

    async def run(self) -> None:
        """Look after all apps, for ever."""
        while True:
            await self._clock.sleep(_LOOK_EVERY_S)
            for app_id in list(self._apps()):
                try:
                    await self.look(app_id)
                except SyncbeatError as error:
                    _log.warning("cannot fit a prior now", extra={"app_id": app_id, "reason": error.reason})
                except (OSError, ValueError, TimeoutError):
                    _log.exception("a prior could not be fitted; the old one stays", extra={"app_id": app_id})

    async def look(self, app_id: str) -> Fitted | None:
        """Take the app's turn if it is to be had: fit the sample, make it as large as it should be, delete what is old.

        Raises:
            DependencyDown: the database does not answer.
            OSError, ValueError, TimeoutError: the fit failed.
        """
        async with self._database.connection() as conn:
            turn = await app_tuning.take_turn(conn, app_id, _TURN_S, _FIT_EVERY_S, _LAG_S)
            if turn is None:
                return None
            histories = await app_tuning.histories(conn, app_id, turn, _MOST_SCOPES) if turn.due else []
            wanted = min(1.0, _SCOPES / max(1, await app_tuning.active_scopes(conn, app_id, _MOST_COUNTED)))
            if not 1 / _OFF_BY < wanted / turn.share < _OFF_BY:
                await app_tuning.sample_from_now(conn, app_id, wanted)
        fitted = await self._solve(histories, turn.prior or DEFAULT_PRIOR) if histories else None
        if fitted is not None:
            async with self._database.connection() as conn:
                await app_tuning.keep_fit(conn, app_id, fitted)
            _log.info("a prior was fitted", extra={"app_id": app_id, **fitted.prior._asdict()})
        return fitted


async def fit_in_child(histories: Sequence[History], before: Prior) -> Fitted | None:
    """Fit in a process of its own, which ends when this one does.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it takes too long.
        ValueError: it failed.
    """
    question = orjson.dumps({"histories": [tuple(history) for history in histories], "before": tuple(before)})
    child = await asyncio.create_subprocess_exec(
        *launch_prefix(signal.SIGKILL),
        sys.executable,
        "-m",
        "syncbeat_server.sync.tuning.fit_process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_CHILD_S):
            answer, _ = await child.communicate(question)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    fitted = orjson.loads(answer)
    return None if fitted is None else Fitted(Prior(*fitted[0]), *fitted[1:])
