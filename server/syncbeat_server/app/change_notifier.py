"""Wake-ups between processes: what is told after a commit, and what is heard from the others."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.process import Process
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.push.delivery.worker import DeliveryWorker
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.streams.hub import Hub

_CHANGES, _MEMBERS, _DELIVERIES, _CALLERS, _DEVICES = "changes", "members", "deliveries", "callers", "devices"
_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Front:
    """What a process that serves RPCs has beside: who is at the door, the caches of all processes, and what hints are
    made of."""

    door: Authenticator
    callers: CallerCaches
    caches: ClusterTokenCache
    views: ViewCache


class Tellers:
    """What is told after a commit: first to this process, which does not wait for Redis, then to the others."""

    def __init__(self, process: Process, worker: DeliveryWorker | None, front: Front) -> None:
        self._process = process
        self._worker = worker
        self._front = front

    def scope_changed(self, app_id: str, scope: str) -> None:
        self._changed(_CHANGES, app_id, [scope])

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        self._changed(_MEMBERS, app_id, user_ids)

    def devices_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        self._changed(_DEVICES, app_id, user_ids)

    def caller_changed(self, app_id: str, user_id: str) -> None:
        self._changed(_CALLERS, app_id, [user_id])

    def _changed(self, topic: str, app_id: str, names: Sequence[str]) -> None:
        for name in names:
            _changed_here(self._process.hub, self._front, topic, app_id, name)
            self._process.bus.publish(topic, f"{app_id}{_SEPARATOR}{name}")

    def deliveries_accepted(self) -> None:
        if self._worker is not None:
            self._worker.wake()
        bus = self._process.bus
        bus.publish(_DELIVERIES, "")
        if not (bus.listening and bus.health.is_up):
            self._process.notices.notify()  # Redis is away, or half: PostgreSQL tells those workers that listen to it


def _changed_here(hub: Hub, front: Front, topic: str, app_id: str, name: str) -> None:
    """A scope or a user is no longer as it was: what is kept of it ends, and streams look."""
    if topic == _CHANGES:
        front.views.scope_changed(app_id, name)
        hub.scope_changed(app_id, name)
        return
    front.views.user_changed(app_id, name)
    if topic == _MEMBERS:
        hub.members_changed(app_id, name)
    elif topic == _CALLERS:
        front.callers.invalidate_user(app_id, name)
        hub.callers_changed(app_id, name)


def listening(process: Process, worker: DeliveryWorker | None, front: Front | None) -> Coroutine[Any, Any, None]:
    """Hears the wake-ups of the other processes, for ever."""
    hub = process.hub

    def heard(topic: str, message: str) -> None:
        if front is not None and front.caches.handle(topic, message):
            return
        if topic == _DELIVERIES:
            if worker is not None:
                worker.wake()
            return
        if front is not None:
            app_id, _, name = message.partition(_SEPARATOR)
            _changed_here(hub, front, topic, app_id, name)

    def resumed() -> None:
        # Whatever was said meanwhile is lost: look for yourself.
        if front is not None:
            front.callers.invalidate_app()
            front.views.invalidate_all()
        hub.invalidate_all()
        if worker is not None:
            worker.wake()

    topics = [_CHANGES, _MEMBERS, _DELIVERIES, _CALLERS, _DEVICES, *(front.caches.topics if front is not None else ())]
    return process.bus.run_listener(topics, heard, resumed)
