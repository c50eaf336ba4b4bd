"""Keeps buckets of rates that each process counts for itself, on its monotonic clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from syncbeat_server.clock import Clock
from syncbeat_server.ratelimit.model import Rate
from syncbeat_server.ratelimit.policy.decision import Decision
from syncbeat_server.ratelimit.policy.gcra import take


class LocalBuckets:
    """Buckets by key, all of one rate; of more than `max_keys` those used least recently start over."""

    def __init__(self, clock: Clock, rate: Rate, max_keys: int) -> None:
        self._clock = clock
        self._rate = rate
        self._max_keys = max_keys
        self._drained_at: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, key: Hashable) -> Decision:
        """Take one unit of a key's bucket, if there is one; a refusal costs nothing."""
        now = self._clock.monotonic()
        decision, self._drained_at[key] = take(self._rate, self._drained_at.get(key, now), now)
        self._drained_at.move_to_end(key)
        if len(self._drained_at) > self._max_keys:
            self._drained_at.popitem(last=False)
        return decision
