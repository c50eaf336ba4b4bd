"""Writes what became of claimed deliveries, many at once, and what the provider said of their registration tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, Overloaded
from syncbeat_server.push.model import DeliveryState, Finished, Kind, Reason
from syncbeat_server.push.policy.decisions import MAX_MOVES
from syncbeat_server.push.policy.resend import ResendRule, goes_on, silent
from syncbeat_server.push.store import alerts, device_limits, device_tokens, queue
from syncbeat_server.storage.batcher import Batcher
from syncbeat_server.storage.postgres.database import Connection, Database

_log = logging.getLogger(__name__)

_DOWN_PAUSE_S = 0.5
_SPARED = (Reason.QUIET_HOURS, Reason.DAILY_MAXIMUM)


class Recorder:
    """Records under the lease: what a worker writes that lost it is void."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        wake: Callable[[], None],
        voided: Callable[[int], None],
        braked: Callable[[str], None],
        rule: ResendRule,
        woken: Callable[[str, bool], None],
    ) -> None:
        """`wake` is called when something recorded is due at once; `voided(n)` when n leases had run out.

        `braked(app)`: its provider called too many tokens dead, so that none was taken away. `woken(app, again)`: its
        provider took a silent wake-up, for the first time or again.
        """
        self._database = database
        self._clock = clock
        self._wake = wake
        self._voided = voided
        self._braked = braked
        self._rule = rule
        self._woken = woken
        self._batches: Batcher[Finished, None] = Batcher(self._write)

    async def record(self, finished: Finished) -> None:
        """Write one outcome; returns when it is committed."""
        # Sent is sent: while the lease can still be ours, an outage of the database must not make it sent again.
        while True:
            try:
                await self._batches.submit(finished)
            except (DependencyDown, Overloaded) as error:
                _log.warning("cannot record an attempt yet", extra={"reason": error.reason})
                await self._clock.sleep(_DOWN_PAUSE_S)
            else:
                return

    async def drain(self) -> None:
        """Wait until what was submitted is written."""
        await self._batches.drain()

    async def _write(self, finished: Sequence[Finished]) -> list[None]:
        async with self._database.transaction() as conn:
            ends = [goes_on(end, self._rule) for end in await self._heed_provider(conn, finished)]
            recorded = await queue.finish(conn, ends)
            held = [f.delivery for f in ends if f.reason is Reason.WAKE_BUDGET]
            if held:
                await device_limits.merge_held(conn, held)
            spared = [f.delivery for f in ends if f.reason in _SPARED and f.delivery.kind is Kind.SYNC]
            if spared:
                await alerts.merge_held(conn, spared)
        if len(recorded) < len(finished):
            # A device that acknowledges before its attempt ended leaves nothing to record either.
            _log.info("attempts ended without their lease", extra={"count": len(finished) - len(recorded)})
            self._voided(len(finished) - len(recorded))
        for end in ends:
            if end.state is DeliveryState.SENT and not end.give_back_attempt and silent(end.delivery):
                self._woken(end.delivery.app_id, end.delivery.resends > 0)
        if any(end.moved for end in ends):
            self._wake()
        return [None] * len(finished)

    async def _heed_provider(self, conn: Connection, finished: Sequence[Finished]) -> list[Finished]:
        foreign = [f.delivery for f in finished if f.reason is Reason.WRONG_SENDER]
        dead = [f.delivery for f in finished if f.reason is Reason.UNREGISTERED]
        if foreign or dead:
            await device_tokens.lock(conn, dead, foreign)
        if foreign:
            await device_tokens.quarantine(conn, foreign)
        if not dead:
            return list(finished)
        invalid = frozenset(f.delivery.delivery_id for f in finished if f.invalid_token)
        buried = await device_tokens.bury(conn, dead, invalid)
        for app_id in buried.braked:
            self._braked(app_id)
            _log.error(
                "the provider calls too many registration tokens dead: none is removed now; is the project right?",
                extra={"app_id": app_id},
            )
        return [_moved(f) if f.delivery.delivery_id in buried.moved else f for f in finished]


def _moved(finished: Finished) -> Finished:
    if finished.delivery.moves >= MAX_MOVES:
        return finished
    return replace(finished, state=DeliveryState.PENDING, reason=Reason.NONE, due_in_s=0.0, moved=True)
