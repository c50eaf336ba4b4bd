"""Notifies this process and the others of changes: after a commit, and when another process has committed."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from syncbeat_server.app.process import Process
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.clock import Clock
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.streams.hub import Hub

_SEPARATOR = "\x1f"


class Topic(StrEnum):
    """Names the topics on which processes notify each other."""

    SCOPES = "changes"
    MEMBERS = "members"
    DEVICES = "devices"
    CALLERS = "callers"
    DELIVERIES = "deliveries"


_ECHO_S = 2.0
_MAX_ECHOES = 10_000


class OwnEchoes:
    """Recognizes wake-ups that this process sent itself, which Redis delivers to it too.

    They carry no name of a process, which processes of earlier versions would take for a part of the scope's. So of two
    processes that wake for one scope at once, each may drop the other's and apply its own a moment later, which is as
    good: what both have committed is there to be read by then. One whose echo is lost is forgotten after a while.
    """

    def __init__(self, clock: Clock, size: int = _MAX_ECHOES) -> None:
        """`size`: the messages expected at once at most."""
        self._clock = clock
        self._size = size
        self._expected: dict[str, tuple[int, float]] = {}

    def expect(self, message: str) -> None:
        """Expect a message that this process sends now."""
        if len(self._expected) >= self._size:
            self._expected.clear()
        self._expected[message] = self._count(message) + 1, self._clock.monotonic()

    def take(self, message: str) -> bool:
        """Return True if a message that arrived was expected; it then is no longer."""
        count = self._count(message)
        _, sent_at = self._expected.pop(message, (0, 0.0))
        if count > 1:
            self._expected[message] = count - 1, sent_at
        return count > 0

    def clear(self) -> None:
        """Expect nothing any more: what was sent before may be lost."""
        self._expected.clear()

    def _count(self, message: str) -> int:
        count, sent_at = self._expected.get(message, (0, 0.0))
        return count if self._clock.monotonic() - sent_at < _ECHO_S else 0


@dataclass(frozen=True)
class RpcCaches:
    """Caches of a process that serves RPCs, which changes invalidate, and the authenticator that uses them."""

    authenticator: Authenticator
    callers: CallerCaches
    tokens: ClusterTokenCache
    views: ViewCache
    echoes: OwnEchoes

    def invalidate_all(self) -> None:
        """Invalidate everything cached here, after notifications may have been lost."""
        self.callers.invalidate_app()
        self.views.invalidate_all()


def wake_up_message(app_id: str, name: str) -> str:
    """Return the message by which processes tell each other of a scope or user of an app."""
    return f"{app_id}{_SEPARATOR}{name}"


class ClusterNotifier:
    """Implements `ChangeNotifier`: notifies this process at once, without waiting for Redis, then the others."""

    def __init__(self, process: Process, worker: DeliveryWorker | None, caches: RpcCaches | None) -> None:
        """`caches` is None in a process without RPCs."""
        self._process = process
        self._worker = worker
        self._caches = caches

    def scope_changed(self, app_id: str, scope: str) -> None:
        """Notify of a scope's new head, boost or expected change rate."""
        self._notify(Topic.SCOPES, app_id, [scope])

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Notify of users who joined or left scopes."""
        self._notify(Topic.MEMBERS, app_id, user_ids)

    def devices_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Notify of users of whom a device changed."""
        self._notify(Topic.DEVICES, app_id, user_ids)

    def caller_changed(self, app_id: str, user_id: str) -> None:
        """Notify of a user whose tokens may be revoked."""
        self._notify(Topic.CALLERS, app_id, [user_id])

    def deliveries_accepted(self) -> None:
        """Wake the workers: deliveries wait to be sent."""
        if self._worker is not None:
            self._worker.wake()
        bus = self._process.bus
        bus.publish(Topic.DELIVERIES, "")
        if not (bus.listening and bus.health.is_up):
            self._process.pg_notifier.notify()  # for workers with a session of their own, while Redis is away

    def _notify(self, topic: Topic, app_id: str, names: Sequence[str]) -> None:
        bus = self._process.bus
        for name in names:
            message = wake_up_message(app_id, name)
            if self._caches is not None:
                _invalidate(self._process.hub, self._caches, topic, app_id, name)
                if topic is Topic.SCOPES and bus.listening:
                    self._caches.echoes.expect(message)
            bus.publish(topic, message)


def _invalidate(hub: Hub, caches: RpcCaches, topic: str, app_id: str, name: str) -> None:
    """Drop from the caches what a change of a scope or user outdates, and make the streams concerned read again."""
    if topic == Topic.SCOPES:
        caches.views.scope_changed(app_id, name)
        hub.scope_changed(app_id, name)
        return
    caches.views.user_changed(app_id, name)
    if topic == Topic.MEMBERS:
        hub.members_changed(app_id, name)
    elif topic == Topic.CALLERS:
        caches.callers.invalidate_user(app_id, name)
        hub.callers_changed(app_id, name)


def listen_for_changes(
    process: Process, worker: DeliveryWorker | None, caches: RpcCaches | None
) -> Coroutine[Any, Any, None]:
    """Apply the notifications of other processes, for ever. `caches` is None in a process without RPCs."""
    hub = process.hub

    def on_message(topic: str, message: str) -> None:
        if caches is not None and caches.tokens.handle(topic, message):
            return
        if topic == Topic.DELIVERIES:
            if worker is not None:
                worker.wake()
            return
        if caches is not None and not (topic == Topic.SCOPES and caches.echoes.take(message)):
            app_id, _, name = message.partition(_SEPARATOR)
            _invalidate(hub, caches, topic, app_id, name)

    def on_connect() -> None:
        # Notifications sent while the connection was down are lost.
        if caches is not None:
            caches.echoes.clear()
            caches.invalidate_all()
        hub.invalidate_all()
        if worker is not None:
            worker.wake()

    topics = [*Topic, *(caches.tokens.topics if caches is not None else ())]
    return process.bus.run_listener(topics, on_message, on_connect)
