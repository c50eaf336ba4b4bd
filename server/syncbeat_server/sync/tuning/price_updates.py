"""What hints are tuned by, learned while the service runs: what this process measured goes to the app's row, and what
all processes learned comes back.

Nothing of it is on the path of a request: hints read a value in memory. Without the database they go by the last one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from syncbeat_server.clock import Clock
from syncbeat_server.defaults import SchedulingPolicy
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import DeviceKey
from syncbeat_server.sync.policy.belief import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING, Tuning
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_controller import DEFAULT_TARGET, Target, TargetKind, first_price
from syncbeat_server.sync.policy.price_state import Sums, begun, tuned_after
from syncbeat_server.sync.store import app_tuning
from syncbeat_server.sync.store.app_tuning import Learned, PushHealth
from syncbeat_server.sync.tuning.hint_recorder import Recorder

_log = logging.getLogger(__name__)

_READ_EVERY_S = 10.0
_WRITE_EVERY_S = 60.0
_FIXED_OVER_MEAN, _FIXED_OVER_P95 = 2.0, 1 / 0.95
_LEAST_FIXED_S = 1.0
_ASSUMED_HEALTH = PushHealth(DEFAULT_TUNING.app_misses, DEFAULT_TUNING.push_misses, working=True)


class Aim(NamedTuple):
    """What an app's settings say: its target, the bounds of its intervals, what decides them."""

    target: Target = DEFAULT_TARGET
    bounds: Bounds = DEFAULT_TUNING.bounds
    policy: SchedulingPolicy = SchedulingPolicy.ADAPTIVE


class Learning:
    """Tunes the hints of a process that serves them."""

    def __init__(
        self,
        database: Database,
        aims: Callable[[], Mapping[str, Aim]],
        streaming: Callable[[], Iterable[DeviceKey]],
        clock: Clock,
    ) -> None:
        """`aims` by app, read anew each time; `streaming` names the devices that have a stream on this process."""
        self._database = database
        self._aims = aims
        self._streaming = streaming
        self._clock = clock
        self._learned: Mapping[str, Learned] = {}
        self._pushes: Mapping[str, PushHealth] = {}
        self._tunings: dict[str, Tuning] = {}
        self.recorder = Recorder(self.tuning)
        self._tune()

    def tuning(self, app_id: str) -> Tuning:
        """What an app's hints are decided by now."""
        return self._tunings.get(app_id, DEFAULT_TUNING)

    async def run(self) -> None:
        """Read what was learned, for ever, and write what was measured, once a minute."""
        write_at = self._clock.monotonic() + _WRITE_EVERY_S
        while True:
            try:
                if self._clock.monotonic() >= write_at:
                    write_at = self._clock.monotonic() + _WRITE_EVERY_S
                    self._tick()
                    await self.write()
                await self.read()
            except SyncbeatError as error:
                _log.warning("cannot learn now; hints go by what was learned before", extra={"reason": error.reason})
            await self._clock.sleep(_READ_EVERY_S)

    async def read(self) -> None:
        """Take over what all processes learned. Raises DependencyDown."""
        async with self._database.connection() as conn:
            self._learned = await app_tuning.all_learned(conn)
            self._pushes = await app_tuning.push_health(conn)
        self.recorder.shares = {app_id: one.share for app_id, one in self._learned.items()}
        self._tune()

    async def write(self) -> None:
        """Add what was measured here to the apps' rows, and adjust the price of those whose time it is.

        Raises:
            DependencyDown: the database does not answer; what is not written yet is, the next time.
        """
        for app_id, aim in self._aims().items():
            await self._write_sums(app_id, aim)
        for app_id, samples in self.recorder.take_samples().items():
            async with self._database.connection() as conn:
                await app_tuning.add_samples(conn, app_id, samples)
        for app_id in self.recorder.take_overflowed():
            async with self._database.connection() as conn:
                await app_tuning.thin_out(conn, app_id)

    async def _write_sums(self, app_id: str, aim: Aim) -> None:
        tally = self.recorder.tallies.get(app_id)
        measured = tally.sums() if tally is not None else Sums()
        async with self._database.transaction() as conn:
            row = await app_tuning.locked(conn, app_id)
            if row is None:
                await app_tuning.begin(conn, app_id, begun(aim.target, DEFAULT_PRIOR, self._clock.now().timestamp()))
                row = await app_tuning.locked(conn, app_id)
            if row is None:
                return
            sums = measured.less(tally.taken) if tally is not None else measured
            after = tuned_after(row.tuned, sums, aim.target, row.prior or DEFAULT_PRIOR, row.now)
            await app_tuning.keep(conn, app_id, after)
        if tally is not None:
            tally.taken = measured

    def _tick(self) -> None:
        self.recorder.streaming(Counter(device.app_id for device in self._streaming()), _WRITE_EVERY_S)
        aims = self._aims()
        for app_id, tally in self.recorder.tallies.items():
            tally.tick(self._fixed_interval_s(app_id, aims.get(app_id, Aim()).target))

    def _fixed_interval_s(self, app_id: str, target: Target) -> float:
        """With which interval fixed polling would meet the target; for a budget, give the staleness that there is."""
        if target.kind is TargetKind.MEAN:
            return _FIXED_OVER_MEAN * target.value
        if target.kind is TargetKind.P95:
            return _FIXED_OVER_P95 * target.value
        row = self._learned.get(app_id)
        mean_s = row.tuned.mean_s if row is not None else None
        return max(_LEAST_FIXED_S, _FIXED_OVER_MEAN * (mean_s or DEFAULT_TARGET.value))

    def _tune(self) -> None:
        self._tunings = {app_id: self._tuned(app_id, aim) for app_id, aim in self._aims().items()}

    def _tuned(self, app_id: str, aim: Aim) -> Tuning:
        row = self._learned.get(app_id)
        pushes = self._pushes.get(app_id, _ASSUMED_HEALTH)
        prior: Prior = DEFAULT_PRIOR if row is None or row.prior is None else row.prior
        price = first_price(aim.target, prior) if row is None or row.tuned.target != aim.target else row.tuned.price
        return DEFAULT_TUNING._replace(
            policy=aim.policy,
            target=str(aim.target),
            bounds=aim.bounds,
            prior=prior,
            price=price,
            late_s=aim.target.late_s,
            app_misses=pushes.misses,
            push_misses=pushes.single_misses,
            pushing=pushes.working,
        )
