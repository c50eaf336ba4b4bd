"""What the devices of this process met: how stale it was, how often they asked, and when sampled scopes changed.

Everything here is on the path of hints and publishes, so that it only counts. `sync/tuning/price_updates.py` takes the
sums away each minute, and `ops/metrics/sync.py` exposes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.sync.model import Cursor, DeviceKey, Hint, ScopeState
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.staleness import AWAY_AFTER, AWAY_GRACE_S, is_away, met_by_poll, met_on_stream
from syncbeat_server.sync.tuning.counters import Tally

_MAX_DEVICES = 50_000
_MAX_SAMPLES_OF_APP = 2_000
_MAX_APPS = 1_000
_LOOKED_AT = 0.5  # of all attention: the bounds of other devices are wider
_MOSTLY_POLLED = 0.5  # of its changes: a device that pushes reach is no measure of how well polls are spread
_FEW_HEADS = 32
_HASHES = float(1 << 32)


class _Poll(NamedTuple):
    """The last poll of a device: its moment, the wait it was told, what that was made from, and the heads it was told
    (none of a device with many scopes)."""

    at: float
    told_s: float
    rate_per_s: float
    attention: float
    mostly_polled: bool
    heads: tuple[Cursor, ...]


class Recorder:
    """Counts what hints and streams show, and samples what publishes change."""

    def __init__(self, tuning: Callable[[str], Tuning]) -> None:
        """`tuning` knows an app's bounds, and when a change is late."""
        self._tuning = tuning
        self._tallies: dict[str, Tally] = {}
        # In two generations, so that the oldest half can be forgotten at once.
        self._polls: dict[DeviceKey, _Poll] = {}
        self._older: dict[DeviceKey, _Poll] = {}
        self._samples: dict[str, list[tuple[str, float]]] = {}
        self.shares: Mapping[str, float] = {}
        self._overflowed: set[str] = set()

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """The counts by app."""
        return self._tallies

    def polled(
        self,
        device: DeviceKey,
        now: float,
        hint: Hint,
        states: Mapping[str, ScopeState],
        cursors: Sequence[Cursor],
    ) -> None:
        """A device that shows `cursors` asked at `now` (unix seconds) and is told `hint`; `states` are its scopes'.

        What is new to it counts with the delay that it had, if the device came when it was told to, and asked this
        process before. Who shows nothing (a report, or an app that keeps no cursors) is counted as a request only.
        """
        tally = self._tally(device.app_id)
        tally.told(hint.poll_interval_s)
        if not cursors:
            return
        tuning = self._tuning(device.app_id)
        mostly_polled = hint.residual >= _MOSTLY_POLLED
        if mostly_polled and hint.attention >= _LOOKED_AT:
            tally.bounded(hint.wanted_s, hint.poll_interval_s, tuning.bounds)
        heads = hint.heads if len(hint.heads) <= _FEW_HEADS else ()
        now_asked = _Poll(now, hint.poll_interval_s, hint.rate_per_s, hint.attention, mostly_polled, heads)
        before = self._replaced(device, now_asked)
        if before is None:
            return
        waited_s = now - before.at
        if waited_s < 0.0 or is_away(waited_s, before.told_s):
            return
        tally.served(waited_s, before.rate_per_s, mostly_polled=before.mostly_polled)
        if hint.changed:
            for newest_at, unseen in _news(states, cursors, before):
                met = met_by_poll(now, before.at, newest_at, unseen, tuning.late_s)
                newest_s = max(0.0, now - newest_at)
                tally.showed(met, newest_s, waited_s, before.attention, mostly_polled=before.mostly_polled)

    def fetched(self, device: DeviceKey, now: float, changed_at: Iterable[float]) -> None:
        """A device read changes of these instants (unix seconds). What its last poll has shown is not counted again;
        what is older than any wait was missed by a device that was away."""
        tally = self._tally(device.app_id)
        tally.requests += 1
        tuning = self._tuning(device.app_id)
        since = now - AWAY_AFTER * tuning.bounds.cap_s - AWAY_GRACE_S
        before = self._polls.get(device) or self._older.get(device)
        if before is not None and before.at > since:
            since = before.at
        attention = 1.0 if before is None else before.attention
        self._showed(tally, now, [at for at in changed_at if at > since], tuning.late_s, attention)

    def streamed(self, app_id: str, now: float, changed_at: Sequence[float]) -> None:
        """A stream sent changes of these instants (unix seconds), which came after it was opened."""
        self._showed(self._tally(app_id), now, changed_at, self._tuning(app_id).late_s, 1.0)

    def streaming(self, devices: Mapping[str, int], seconds: float) -> None:
        """So many devices of each app had a stream instead of polling, for so long."""
        for app_id, count in devices.items():
            self._tally(app_id).streamed(count * seconds)

    def changed(self, app_id: str, scope: str, now: float) -> None:
        """A scope changed at `now` (unix seconds)."""
        share = self.shares.get(app_id, 1.0)
        if share < 1.0 and not sampled(scope, share):
            return
        samples = self._samples.get(app_id)
        if samples is None:
            if len(self._samples) >= _MAX_APPS:
                return
            samples = self._samples[app_id] = []
        if len(samples) < _MAX_SAMPLES_OF_APP:
            samples.append((scope, now))
        else:
            self._overflowed.add(app_id)

    def take_samples(self) -> Mapping[str, list[tuple[str, float]]]:
        """By app the (scope, instant) that were sampled since the last time."""
        taken, self._samples = self._samples, {}
        return taken

    def take_overflowed(self) -> Sequence[str]:
        """The apps of which more was sampled than is kept, since the last time."""
        taken, self._overflowed = self._overflowed, set()
        return sorted(taken)

    def _replaced(self, device: DeviceKey, poll: _Poll) -> _Poll | None:
        """Keep a device's poll, and answer the one before."""
        before = self._polls.get(device)
        if before is None:
            before = self._older.pop(device, None)
            if len(self._polls) >= _MAX_DEVICES // 2:
                self._older, self._polls = self._polls, {}
        self._polls[device] = poll
        return before

    def _showed(self, tally: Tally, now: float, changed_at: Iterable[float], late_s: float, attention: float) -> None:
        for at in changed_at:
            met = met_on_stream(now, at, late_s)
            tally.showed(met, met.stale_s, met.stale_s, attention, mostly_polled=False)

    def _tally(self, app_id: str) -> Tally:
        tally = self._tallies.get(app_id)
        if tally is None:
            tally = self._tallies[app_id] = Tally()
        return tally


def sampled(scope: str, share: float) -> bool:
    """Whether a scope is in a sample of this share: as `syncbeat_sampled` in SQL."""
    return int.from_bytes(hashlib.sha256(scope.encode()).digest()[:4], "big") < share * _HASHES


def _news(states: Mapping[str, ScopeState], cursors: Sequence[Cursor], before: _Poll) -> Iterator[tuple[float, int]]:
    """Of each scope that is ahead of its cursor: the newest change's instant, and how many there are that the poll
    before did not tell of, whether they were fetched since or not."""
    told = {head.scope: head for head in before.heads}
    shows = {cursor.scope: cursor for cursor in cursors}  # who names a scope twice does not count twice
    for scope, epoch, sequence in shows.values():
        state = states.get(scope)
        if state is None or sequence is None or epoch not in ("", state.epoch):
            continue
        known = told.get(scope)
        shown = sequence if known is None or known.epoch != state.epoch else max(sequence, known.sequence or 0)
        newest_at = state.signal.windows.at
        if shown < state.head and newest_at > before.at:
            yield newest_at, state.head - shown
