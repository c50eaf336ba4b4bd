"""Fan-out of wake-ups to the open streams of this process.

A stream keeps one slot for each scope: "there is news", with no queue behind it. What is new it reads from the store,
so a slow stream costs nothing but its own delay, and nobody is dropped. Streams are woken in chunks, so that thousands
on one scope do not hold the loop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import TypeVar

from syncbeat_server.defaults import STREAMS_PER_DEVICE, STREAMS_PER_USER
from syncbeat_server.errors import RateLimited
from syncbeat_server.sync.model import DeviceKey, ScopeKey

MAX_STREAM_AGE_S = 30 * 60.0

_AGAIN_S = 30.0  # within 80 s a connection that is dead has been noticed, and its streams are gone

_WAKE_CHUNK = 100


_K = TypeVar("_K")


class Subscription:
    """One open stream: which scopes it follows and which of them have news. One of all scopes is only woken."""

    __slots__ = (
        "_waiter",
        "all_scopes",
        "all_sent",
        "device",
        "dirty",
        "members_changed",
        "recheck",
        "scopes",
        "woken",
    )

    def __init__(self, device: DeviceKey, *, all_scopes: bool) -> None:
        self.device = device
        self.all_scopes = all_scopes
        self.scopes: set[str] = set()
        self.dirty: set[str] = set()
        self.members_changed = False
        self.all_sent = False
        """Whatever was sent may be so no longer."""
        self.recheck = False
        self.woken = False
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, seconds: float) -> None:
        """Return when there is news, or after `seconds`."""
        if self.woken or seconds <= 0:
            self.woken = False
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self._release)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
            self.woken = False

    def wake(self) -> None:
        """Make `wait` return, now or at its next call."""
        self.woken = True
        self._release()

    def _release(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def take_dirty(self) -> set[str]:
        """The scopes with news, which count as looked at from now."""
        dirty, self.dirty = self.dirty, set()
        return dirty


class Hub:
    """The subscriptions of this process, by what they follow."""

    def __init__(
        self,
        stream_age_s: float = MAX_STREAM_AGE_S,
        most_of_user: int = STREAMS_PER_USER,
        most_of_device: int = STREAMS_PER_DEVICE,
    ) -> None:
        """`stream_age_s`: after which time a stream is to have ended at the latest."""
        self.stream_age_s = stream_age_s
        self._most_of_user, self._most_of_device = most_of_user, most_of_device
        self._by_scope: dict[ScopeKey, set[Subscription]] = defaultdict(set)
        self._by_user: dict[tuple[str, str], set[Subscription]] = defaultdict(set)
        self._all_of_app: dict[str, set[Subscription]] = defaultdict(set)
        self._to_wake: deque[Subscription] = deque()
        self._waking = False
        self.draining = False
        self.opened = 0
        """How many streams were opened."""

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def add(self, subscription: Subscription) -> None:
        """Start to wake this stream.

        Raises:
            RateLimited: its user, or its device, has as many open as it may. Those of a service's own are not counted.
        """
        key = subscription.device
        others = self._by_user.get((key.app_id, key.user_id), ()) if key.user_id else ()
        if len(others) >= self._most_of_user:
            raise _too_many("user", self._most_of_user)
        if key.device_id and sum(other.device == key for other in others) >= self._most_of_device:
            raise _too_many("device", self._most_of_device)
        self.opened += 1
        self._by_user[key.app_id, key.user_id].add(subscription)
        if subscription.all_scopes:
            self._all_of_app[key.app_id].add(subscription)

    def follow(self, subscription: Subscription, scopes: Iterable[str]) -> None:
        """Wake it for these scopes, and no others, from now on."""
        wanted = set(scopes)
        for scope in subscription.scopes - wanted:
            self._discard(self._by_scope, (subscription.device.app_id, scope), subscription)
        for scope in wanted - subscription.scopes:
            self._by_scope[subscription.device.app_id, scope].add(subscription)
        subscription.scopes = wanted

    def remove(self, subscription: Subscription) -> None:
        """Forget this stream."""
        self.follow(subscription, ())
        key = subscription.device
        self._discard(self._by_user, (key.app_id, key.user_id), subscription)
        self._discard(self._all_of_app, key.app_id, subscription)

    def scope_changed(self, app_id: str, scope: str) -> None:
        """There is news in a scope."""
        for subscription in self._by_scope.get((app_id, scope), ()):
            self._mark(subscription, scope)
        for subscription in self._all_of_app.get(app_id, ()):
            self._wake(subscription)

    def members_changed(self, app_id: str, user_id: str) -> None:
        """A user joined or left a scope."""
        for subscription in self._by_user.get((app_id, user_id), ()):
            subscription.members_changed = True
            self._wake(subscription)

    def callers_changed(self, app_id: str, user_id: str | None) -> None:
        """A user's tokens may have been taken back, or for None everybody's of the app: their streams find out."""
        keys = [(app_id, user_id)] if user_id is not None else [key for key in self._by_user if key[0] == app_id]
        for key in keys:
            for subscription in self._by_user.get(key, ()):
                subscription.recheck = True
                self._wake(subscription)

    def look_everywhere(self, *, restored: bool = False) -> None:
        """Wake-ups may have been lost: every stream looks for itself; at all that it has sent, if it was `restored`."""
        for subscriptions in self._by_user.values():
            for subscription in subscriptions:
                subscription.dirty |= subscription.scopes
                subscription.all_sent = subscription.all_sent or restored
                subscription.members_changed = subscription.recheck = True
                self._wake(subscription)

    def drain(self) -> None:
        """Let every stream end by itself."""
        self.draining = True
        for subscriptions in self._by_user.values():
            for subscription in subscriptions:
                self._wake(subscription)

    def followed(self) -> list[ScopeKey]:
        """Every (app, scope) that some stream follows by name."""
        return list(self._by_scope)

    def is_live(self, device: DeviceKey) -> bool:
        """Whether a device has an open stream here."""
        return any(s.device == device for s in self._by_user.get((device.app_id, device.user_id), ()))

    def live_devices(self) -> list[DeviceKey]:
        """The devices with an open stream here."""
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

    def _wake_chunk(self) -> None:
        for _ in range(min(_WAKE_CHUNK, len(self._to_wake))):
            self._to_wake.popleft().wake()
        self._waking = bool(self._to_wake)
        if self._waking:
            asyncio.get_running_loop().call_soon(self._wake_chunk)

    @staticmethod
    def _discard(index: dict[_K, set[Subscription]], key: _K, subscription: Subscription) -> None:
        group = index.get(key)
        if group is not None:
            group.discard(subscription)
            if not group:
                del index[key]


def _too_many(whose: str, most: int) -> RateLimited:
    message = f"a {whose} has at most {most} streams open on a process: end one first"
    return RateLimited(message, retry_after_s=_AGAIN_S, limit=str(most), remaining="0", reset=str(int(_AGAIN_S)))
