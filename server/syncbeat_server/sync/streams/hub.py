"""Fans out wake-ups to the open streams of this process.

A stream keeps one mark for each scope: "there is news", with no queue behind it. It reads the news from the store, so
a slow stream costs nothing but its own delay, and nobody is disconnected. Streams are woken in chunks, so that
thousands on one scope do not hold the event loop, and where many idle ones are woken, their news is read ahead for a
chunk at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from syncbeat_server.ops.work_origin import WorkRank, fresh_context, task_origin
from syncbeat_server.sync.model import DeviceKey, ScopeKey
from syncbeat_server.sync.streams.open_stream_limits import OpenStreamLimits
from syncbeat_server.sync.streams.subscription import Subscription

MAX_STREAM_AGE_S = 30 * 60.0
WAKE_CHUNK = 100
_READ_CHUNK = 256
_READING_AHEAD = task_origin("Hub.read_ahead", WorkRank.CALL)
_MIN_READ_AHEAD = 8  # idle streams; fewer read by themselves, with a statement less
_LIMITS = OpenStreamLimits()

_K = TypeVar("_K")

ReadAhead = Callable[[Sequence[Subscription]], Awaitable[bool]]
"""Reads news of idle streams, and returns False if that failed and they are better woken at once."""


class Hub:
    """Indexes the subscriptions of this process by user and by the scopes they follow."""

    def __init__(
        self,
        stream_age_s: float = MAX_STREAM_AGE_S,
        limits: OpenStreamLimits = _LIMITS,
        wake_chunk: int = WAKE_CHUNK,
    ) -> None:
        """`stream_age_s`: the age at which a stream has ended at the latest; `wake_chunk`: streams woken at once."""
        self.stream_age_s = stream_age_s
        self._wake_chunk_size = wake_chunk
        self._limits = limits
        self._by_scope: dict[ScopeKey, set[Subscription]] = defaultdict(set)
        self._by_user: dict[tuple[str, str], set[Subscription]] = defaultdict(set)
        self._all_of_app: dict[str, set[Subscription]] = defaultdict(set)
        self._to_wake: deque[Subscription] = deque()
        self._waking = False
        self._to_read: deque[Subscription] = deque()
        self._reading: asyncio.Task[None] | None = None
        self.read_ahead: ReadAhead | None = None
        self.draining = False
        self.opened = 0
        """Streams opened since the start."""

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def add(self, subscription: Subscription) -> None:
        """Begin to wake a stream.

        Raises:
            RateLimited: its user, or its device, has as many streams open as allowed. A service's own are not counted.
        """
        key = subscription.device
        self._limits.check(key, [other.device for other in self._by_user.get((key.app_id, key.user_id), ())])
        self.opened += 1
        self._by_user[key.app_id, key.user_id].add(subscription)
        if subscription.all_scopes:
            self._all_of_app[key.app_id].add(subscription)

    def follow(self, subscription: Subscription, scopes: Iterable[str]) -> None:
        """Wake a stream for these scopes, and no others, from now on."""
        wanted = set(scopes)
        for scope in subscription.scopes - wanted:
            self._discard(self._by_scope, (subscription.device.app_id, scope), subscription)
        for scope in wanted - subscription.scopes:
            self._by_scope[subscription.device.app_id, scope].add(subscription)
        subscription.scopes = wanted

    def remove(self, subscription: Subscription) -> None:
        """Stop waking a stream."""
        self.follow(subscription, ())
        key = subscription.device
        self._discard(self._by_user, (key.app_id, key.user_id), subscription)
        self._discard(self._all_of_app, key.app_id, subscription)

    def scope_changed(self, app_id: str, scope: str, head: tuple[str, int] | None = None) -> None:
        """Wake the streams that follow a scope, which has news; with its `head` those that are elsewhere."""
        for subscription in self._by_scope.get((app_id, scope), ()):
            cursor = None if head is None else subscription.cursors.get(scope)
            if cursor is None or cursor[1:] != head:
                self._mark(subscription, scope)
        for subscription in self._all_of_app.get(app_id, ()):
            self._wake(subscription)

    def members_changed(self, app_id: str, user_id: str) -> None:
        """Have a user's streams read its memberships again, because it joined or left a scope."""
        for subscription in self._by_user.get((app_id, user_id), ()):
            subscription.members_changed = True
            self._wake_now(subscription)

    def callers_changed(self, app_id: str, user_id: str | None) -> None:
        """Have a user's streams check their caller again, or for None all of the app: tokens may be revoked."""
        keys = [(app_id, user_id)] if user_id is not None else [key for key in self._by_user if key[0] == app_id]
        for key in keys:
            for subscription in self._by_user.get(key, ()):
                subscription.recheck_caller = True
                self._wake_now(subscription)

    def invalidate_all(self, *, restored: bool = False) -> None:
        """Have every stream read everything again, because wake-ups may be lost.

        After a restore (`restored`) each also reads again all that it has sent.
        """
        for subscriptions in self._by_user.values():
            for subscription in subscriptions:
                subscription.dirty |= subscription.scopes
                subscription.reread_all = subscription.reread_all or restored
                subscription.members_changed = subscription.recheck_caller = True
                self._wake_now(subscription)

    def drain(self) -> None:
        """Have every stream end, because the process stops."""
        self.draining = True
        for subscriptions in self._by_user.values():
            for subscription in subscriptions:
                self._wake_now(subscription)

    def followed_scopes(self) -> list[ScopeKey]:
        """Return every (app, scope) that some stream follows by name."""
        return list(self._by_scope)

    def is_live(self, device: tuple[str, str, str]) -> bool:
        """Return True if a device has an open stream here."""
        streams = self._by_user.get(device[:2])
        return streams is not None and any(stream.device == device for stream in streams)

    def live_devices(self) -> list[DeviceKey]:
        """Return the devices with an open stream here."""
        return list({s.device for group in self._by_user.values() for s in group if s.device.device_id})

    def _mark(self, subscription: Subscription, scope: str) -> None:
        subscription.dirty.add(scope)
        self._wake(subscription)

    def _wake(self, subscription: Subscription) -> None:
        if subscription.woken:
            return
        subscription.woken = True
        self._to_wake.append(subscription)
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_chunk)

    def _wake_now(self, subscription: Subscription) -> None:
        if subscription.woken:
            subscription.wake()  # it may be among those whose news is read ahead, which takes too long for this
        else:
            self._wake(subscription)

    def _wake_chunk(self) -> None:
        chunk = [self._to_wake.popleft() for _ in range(min(self._wake_chunk_size, len(self._to_wake)))]
        idle = [one for one in chunk if one.dirty and one.is_idle] if self.read_ahead and not self.draining else []
        if len(idle) >= _MIN_READ_AHEAD or (idle and self._to_read):
            self._to_read += idle
            if self._reading is None:
                self._reading = asyncio.get_running_loop().create_task(
                    self._read_chunks(), context=fresh_context(_READING_AHEAD)
                )
            left = set(idle)
            chunk = [one for one in chunk if one not in left]
        for subscription in chunk:
            subscription.wake()
        self._waking = bool(self._to_wake)
        if self._waking:
            asyncio.get_running_loop().call_soon(self._wake_chunk)

    async def _read_chunks(self) -> None:
        """Wake the streams that wait for their news to be read ahead, a chunk at a time."""
        try:
            while self._to_read:
                chunk = [self._to_read.popleft() for _ in range(min(_READ_CHUNK, len(self._to_read)))]
                try:
                    if self.read_ahead is not None and not await self.read_ahead(chunk):
                        chunk += self._to_read
                        self._to_read.clear()
                finally:
                    for start in range(0, len(chunk), self._wake_chunk_size):
                        for subscription in chunk[start : start + self._wake_chunk_size]:
                            subscription.wake()
                        await asyncio.sleep(0)
        finally:
            self._reading = None
            while self._to_read:  # some are left only if this task was cancelled
                self._to_read.popleft().wake()

    @staticmethod
    def _discard(index: dict[_K, set[Subscription]], key: _K, subscription: Subscription) -> None:
        group = index.get(key)
        if group is not None:
            group.discard(subscription)
            if not group:
                del index[key]
