"""Updates the tuning of hints while the service runs.

This process's measurements are added to the app's row, and what all processes learned is read back. None of it is on
the path of a request: hints read a value in memory. Without the database they go by the last one.
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
from syncbeat_server.sync.policy.hint_inputs import DEFAULT_TUNING, Tuning
from syncbeat_server.sync.policy.interval import Bounds
from syncbeat_server.sync.policy.price_controller import DEFAULT_TARGET, Target, TargetKind, first_price
from syncbeat_server.sync.policy.price_state import Sums, initial_state, next_state
from syncbeat_server.sync.policy.rhythm import NO_RHYTHM, rhythm_of
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.store import app_tuning, change_samples
from syncbeat_server.sync.store.app_tuning import AppTuning, PushHealth
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder

_log = logging.getLogger(__name__)

_READ_EVERY_S = 10.0
_WRITE_EVERY_S = 60.0
_FIXED_OVER_MEAN, _FIXED_OVER_P95 = 2.0, 1 / 0.95
_LEAST_FIXED_S = 1.0
_ASSUMED_HEALTH = PushHealth(DEFAULT_TUNING.app_misses, DEFAULT_TUNING.push_misses, working=True)


class TuningGoal(NamedTuple):
    """Holds an app's settings for hints: its target, the bounds of its intervals, and the policy that decides them."""

    target: Target = DEFAULT_TARGET
    bounds: Bounds = DEFAULT_TUNING.bounds
    policy: SchedulingPolicy = SchedulingPolicy.ADAPTIVE


class HintTuner:
    """Tunes the hints of a process that serves them."""

    def __init__(
        self,
        database: Database,
        goals: Callable[[], Mapping[str, TuningGoal]],
        live_devices: Callable[[], Iterable[DeviceKey]],
        clock: Clock,
    ) -> None:
        """`goals()` returns the goals by app, anew each time; `live_devices()` the devices with a stream here."""
        self._database = database
        self._goals = goals
        self._live_devices = live_devices
        self._clock = clock
        self._app_tunings: Mapping[str, AppTuning] = {}
        self._push_health: Mapping[str, PushHealth] = {}
        self._tunings: dict[str, Tuning] = {}
        self.recorder = HintRecorder(self.tuning)
        self._rebuild()

    def tuning(self, app_id: str) -> Tuning:
        """Return the present policy inputs of an app."""
        return self._tunings.get(app_id, DEFAULT_TUNING)

    async def run(self) -> None:
        """Read what was learned every 10 s, and write what was measured every minute, for ever."""
        write_at = self._clock.monotonic() + _WRITE_EVERY_S
        while True:
            try:
                if self._clock.monotonic() >= write_at:
                    write_at = self._clock.monotonic() + _WRITE_EVERY_S
                    self._count_stream_time()
                    await self.write()
                await self.read()
            except SyncbeatError as error:
                _log.warning("cannot learn now; hints go by what was learned before", extra={"reason": error.reason})
            await self._clock.sleep(_READ_EVERY_S)

    async def read(self) -> None:
        """Read what all processes learned. Raises DependencyDown."""
        async with self._database.connection() as conn:
            self._app_tunings = await app_tuning.read_app_tunings(conn)
            self._push_health = await app_tuning.read_push_health(conn)
        self.recorder.sample_shares = {app_id: one.share for app_id, one in self._app_tunings.items()}
        self._rebuild()

    async def write(self) -> None:
        """Add the measurements of this process to the apps' rows, and adjust the prices that are due.

        Raises:
            DependencyDown: the database does not answer; what is not written yet is, the next time.
        """
        for app_id, goal in self._goals().items():
            await self._write_sums(app_id, goal)
        for app_id, samples in self.recorder.take_samples().items():
            async with self._database.connection() as conn:
                await change_samples.add_samples(conn, app_id, samples)
        for app_id in self.recorder.take_overflowed():
            async with self._database.connection() as conn:
                await change_samples.halve_sample_share(conn, app_id)

    async def _write_sums(self, app_id: str, goal: TuningGoal) -> None:
        counters = self.recorder.counters.get(app_id)
        measured = counters.sums() if counters is not None else Sums()
        async with self._database.transaction() as conn:
            row = await app_tuning.lock_app_tuning(conn, app_id)
            if row is None:
                await app_tuning.insert_app_tuning(
                    conn, app_id, initial_state(goal.target, DEFAULT_PRIOR, self._clock.now().timestamp())
                )
                row = await app_tuning.lock_app_tuning(conn, app_id)
            if row is None:
                return
            sums = measured.minus(counters.written) if counters is not None else measured
            after = next_state(row.state, sums, goal.target, row.prior or DEFAULT_PRIOR, row.now)
            await app_tuning.update_app_tuning(conn, app_id, after)
        if counters is not None:
            counters.written = measured

    def _count_stream_time(self) -> None:
        self.recorder.record_stream_time(Counter(device.app_id for device in self._live_devices()), _WRITE_EVERY_S)
        goals = self._goals()
        for app_id, counters in self.recorder.counters.items():
            counters.tick(self._fixed_interval_s(app_id, goals.get(app_id, TuningGoal()).target))

    def _fixed_interval_s(self, app_id: str, target: Target) -> float:
        """Return the interval with which fixed polling would meet the target; for a budget, the present staleness."""
        if target.kind is TargetKind.MEAN:
            return _FIXED_OVER_MEAN * target.value
        if target.kind is TargetKind.P95:
            return _FIXED_OVER_P95 * target.value
        row = self._app_tunings.get(app_id)
        mean_s = row.state.mean_s if row is not None else None
        return max(_LEAST_FIXED_S, _FIXED_OVER_MEAN * (mean_s or DEFAULT_TARGET.value))

    def _rebuild(self) -> None:
        self._tunings = {app_id: self._tuning_of(app_id, goal) for app_id, goal in self._goals().items()}

    def _tuning_of(self, app_id: str, goal: TuningGoal) -> Tuning:
        row = self._app_tunings.get(app_id)
        pushes = self._push_health.get(app_id, _ASSUMED_HEALTH)
        prior: Prior = DEFAULT_PRIOR if row is None or row.prior is None else row.prior
        price = first_price(goal.target, prior) if row is None or row.state.target != goal.target else row.state.price
        return DEFAULT_TUNING._replace(
            policy=goal.policy,
            target=str(goal.target),
            bounds=goal.bounds,
            prior=prior,
            price=price,
            late_s=goal.target.late_s,
            app_misses=pushes.misses,
            push_misses=pushes.single_misses,
            pushing=pushes.working,
            rhythm=NO_RHYTHM if row is None else rhythm_of(row.week),
        )
