"""How often a peer may try refresh tokens: a bucket of attempts for each, on this process. It needs no Redis."""

from __future__ import annotations

from collections import OrderedDict

from syncbeat_server.clock import Clock
from syncbeat_server.errors import RateLimited

_MAX_PEERS = 10_000
_WINDOW_S = 60.0


class _Bucket:
    __slots__ = ("at", "tries", "wrong")

    def __init__(self, tries: float, wrong: float, at: float) -> None:
        self.tries = tries
        self.wrong = wrong
        self.at = at


class Attempts:
    """Counts attempts by peer. A peer that brings wrong tokens has few, one that brings good ones many."""

    def __init__(self, clock: Clock, per_minute: int, wrong_per_minute: int) -> None:
        self._clock = clock
        self._per_minute = per_minute
        self._wrong_per_minute = wrong_per_minute
        self._peers: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, peer: str) -> None:
        """Count an attempt of `peer`.

        Raises:
            RateLimited: it has made too many within the minute, or brought too many wrong tokens.
        """
        bucket = self._bucket(peer)
        for left, rate in ((bucket.tries, self._per_minute), (bucket.wrong, self._wrong_per_minute)):
            if left < 1:
                wait_s = (1 - left) * _WINDOW_S / rate
                raise RateLimited("too many attempts to refresh from this address", retry_after_s=max(1.0, wait_s))
        bucket.tries -= 1

    def failed(self, peer: str) -> None:
        """The attempt of `peer` brought a token that is wrong."""
        self._bucket(peer).wrong -= 1

    def _bucket(self, peer: str) -> _Bucket:
        now = self._clock.monotonic()
        bucket = self._peers.get(peer)
        if bucket is None:
            bucket = self._peers[peer] = _Bucket(self._per_minute, self._wrong_per_minute, now)
            if len(self._peers) > _MAX_PEERS:
                self._peers.popitem(last=False)
        minutes = (now - bucket.at) / _WINDOW_S
        bucket.tries = min(float(self._per_minute), bucket.tries + minutes * self._per_minute)
        bucket.wrong = min(float(self._wrong_per_minute), bucket.wrong + minutes * self._wrong_per_minute)
        bucket.at = now
        self._peers.move_to_end(peer)
        return bucket
