"""Records the experience of this process's devices: staleness, requests, and changes of sampled scopes.

Everything here is on the path of hints and publishes, so that it only counts. `price_updates` writes the sums each
minute, and `ops/metrics` shows them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from syncbeat_server.sync.model import Cursor, DeviceKey, Hint, ScopeState
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.staleness import (
    AWAY_AFTER,
    AWAY_GRACE_S,
    is_away,
    staleness_of_delivery,
    staleness_of_poll,
)
from syncbeat_server.sync.tuning.app_counters import AppCounters

_MAX_DEVICES = 50_000
_MAX_SAMPLES_OF_APP = 2_000
_MAX_APPS = 1_000
_MIN_ATTENTION = 0.5  # of a device that measures the bounds: those of other devices are wider
_MOSTLY_POLLED = 0.5  # of its changes: a device that pushes reach does not measure how well polls are spread
_FEW_HEADS = 32
_HASHES = float(1 << 32)


class _LastPoll(NamedTuple):
    """Holds the last poll of a device: its time, interval and inputs, and the heads it was given, unless very many."""

    at: float
    interval_s: float
    rate_per_s: float
    attention: float
    mostly_polled: bool
    heads: tuple[Cursor, ...]


class HintRecorder:
    """Counts the results of hints and streams, and samples the changes that publishes make."""

    def __init__(self, tuning: Callable[[str], Tuning]) -> None:
        """`tuning(app)` returns an app's bounds, and the staleness from which a change is late."""
        self._tuning = tuning
        self._counters: dict[str, AppCounters] = {}
        # In two generations, so that the oldest half can be forgotten at once.
        self._polls: dict[DeviceKey, _LastPoll] = {}
        self._older: dict[DeviceKey, _LastPoll] = {}
        self._samples: dict[str, list[tuple[str, float]]] = {}
        self.sample_shares: Mapping[str, float] = {}
        self._overflowed: set[str] = set()

    @property
    def counters(self) -> Mapping[str, AppCounters]:
        """Return the counters by app."""
        return self._counters

    def record_poll(
        self,
        device: DeviceKey,
        now: float,
        hint: Hint,
        states: Mapping[str, ScopeState],
        cursors: Sequence[Cursor],
    ) -> None:
        """Record a poll at `now` (unix seconds) by a device that shows `cursors` and gets `hint`.

        `states` are those of its scopes. Changes that are new to it count with the delay that they had, if the device
        came in time, and asked this process before. A device that shows no cursors (a report, or an app that keeps
        none) counts as a request only.
        """
        counters = self._counters_of(device.app_id)
        counters.count_hint(hint.poll_interval_s)
        if not cursors:
            return
        tuning = self._tuning(device.app_id)
        mostly_polled = hint.residual >= _MOSTLY_POLLED
        if mostly_polled and hint.attention >= _MIN_ATTENTION:
            counters.count_bounded_poll(hint.unpaced_s, hint.poll_interval_s, tuning.bounds)
        heads = hint.heads if len(hint.heads) <= _FEW_HEADS else ()
        poll = _LastPoll(now, hint.poll_interval_s, hint.rate_per_s, hint.attention, mostly_polled, heads)
        before = self._replace_poll(device, poll)
        if before is None:
            return
        waited_s = now - before.at
        if waited_s < 0.0 or is_away(waited_s, before.interval_s):
            return
        counters.count_served_poll(waited_s, before.rate_per_s, mostly_polled=before.mostly_polled)
        if hint.changed:
            for newest_at, unseen in _unseen_changes(states, cursors, before):
                staleness = staleness_of_poll(now, before.at, newest_at, unseen, tuning.late_s)
                newest_s = max(0.0, now - newest_at)
                counters.count_staleness(
                    staleness, newest_s, waited_s, before.attention, mostly_polled=before.mostly_polled
                )

    def record_fetch(self, device: DeviceKey, now: float, changed_at: Iterable[float]) -> None:
        """Record that a device read changes of these instants (unix seconds), if its last poll has not shown them.

        Changes older than any interval are not counted: a device that was away missed them.
        """
        counters = self._counters_of(device.app_id)
        counters.requests += 1
        tuning = self._tuning(device.app_id)
        since = now - AWAY_AFTER * tuning.bounds.cap_s - AWAY_GRACE_S
        before = self._polls.get(device) or self._older.get(device)
        if before is not None and before.at > since:
            since = before.at
        attention = 1.0 if before is None else before.attention
        self._count_changes(counters, now, [at for at in changed_at if at > since], tuning.late_s, attention)

    def record_streamed_changes(self, app_id: str, now: float, changed_at: Sequence[float]) -> None:
        """Record that a stream sent changes of these instants (unix seconds), made after it was opened."""
        self._count_changes(self._counters_of(app_id), now, changed_at, self._tuning(app_id).late_s, 1.0)

    def record_stream_time(self, devices: Mapping[str, int], seconds: float) -> None:
        """Record that so many devices of each app had a stream instead of polling, for so many seconds."""
        for app_id, count in devices.items():
            self._counters_of(app_id).count_stream_time(count * seconds)

    def record_change(self, app_id: str, scope: str, now: float) -> None:
        """Record that a scope changed at `now` (unix seconds), if it is in the app's sample."""
        share = self.sample_shares.get(app_id, 1.0)
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
        """Return the (scope, instant) sampled since the last call, by app."""
        taken, self._samples = self._samples, {}
        return taken

    def take_overflowed(self) -> Sequence[str]:
        """Return the apps with more samples than are kept since the last call."""
        taken, self._overflowed = self._overflowed, set()
        return sorted(taken)

    def _replace_poll(self, device: DeviceKey, poll: _LastPoll) -> _LastPoll | None:
        """Store a device's poll, and return the one before."""
        before = self._polls.get(device)
        if before is None:
            before = self._older.pop(device, None)
            if len(self._polls) >= _MAX_DEVICES // 2:
                self._older, self._polls = self._polls, {}
        self._polls[device] = poll
        return before

    def _count_changes(
        self, counters: AppCounters, now: float, changed_at: Iterable[float], late_s: float, attention: float
    ) -> None:
        for at in changed_at:
            staleness = staleness_of_delivery(now, at, late_s)
            counters.count_staleness(staleness, staleness.stale_s, staleness.stale_s, attention, mostly_polled=False)

    def _counters_of(self, app_id: str) -> AppCounters:
        counters = self._counters.get(app_id)
        if counters is None:
            counters = self._counters[app_id] = AppCounters()
        return counters


def sampled(scope: str, share: float) -> bool:
    """Return True if a scope is in a sample of this share: as `syncbeat_sampled` in SQL."""
    return int.from_bytes(hashlib.sha256(scope.encode()).digest()[:4], "big") < share * _HASHES


def _unseen_changes(
    states: Mapping[str, ScopeState], cursors: Sequence[Cursor], before: _LastPoll
) -> Iterator[tuple[float, int]]:
    """Yield the newest change's instant and the number of new changes of each scope ahead of its cursor.

    Those that the device's last poll told of are not new, fetched or not.
    """
    given = {head.scope: head for head in before.heads}
    shown_cursors = {cursor.scope: cursor for cursor in cursors}  # a scope that is named twice does not count twice
    for scope, epoch, sequence in shown_cursors.values():
        state = states.get(scope)
        if state is None or sequence is None or epoch not in ("", state.epoch):
            continue
        known = given.get(scope)
        shown = sequence if known is None or known.epoch != state.epoch else max(sequence, known.sequence or 0)
        newest_at = state.signal.windows.at
        if shown < state.head and newest_at > before.at:
            yield newest_at, state.head - shown
