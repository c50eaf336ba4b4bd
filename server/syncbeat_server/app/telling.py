"""Wake-ups between processes: what is told after a commit, and what is heard from the others."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.process import Process
from syncbeat_server.auth.fleet import TokenCaches
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.push.worker import DeliveryWorker

_CHANGES, _MEMBERS, _DELIVERIES = "syncbeat:changes", "syncbeat:members", "syncbeat:deliveries"
_CALLERS = "syncbeat:callers"
_SEPARATOR = "\x1f"
_MAX_TOLD_MEMBERS = 1_000


@dataclass(frozen=True)
class Front:
    """What a process that serves RPCs has beside: who is at the door, and the caches of all processes."""

    door: Authenticator
    caches: TokenCaches


class Tellers:
    """What is told after a commit: first to this process, which does not wait for Redis, then to the others."""

    def __init__(self, process: Process, worker: DeliveryWorker | None, door: Authenticator) -> None:
        self._process = process
        self._worker = worker
        self._door = door

    def scope_changed(self, app_id: str, scope: str) -> None:
        self._process.hub.scope_changed(app_id, scope)
        self._process.bus.publish(_CHANGES, f"{app_id}{_SEPARATOR}{scope}")

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        for user_id in user_ids[:_MAX_TOLD_MEMBERS]:
            self._process.hub.members_changed(app_id, user_id)
            self._process.bus.publish(_MEMBERS, f"{app_id}{_SEPARATOR}{user_id}")

    def caller_changed(self, app_id: str, user_id: str) -> None:
        self._door.revoked(app_id, user_id)
        self._process.hub.callers_changed(app_id, user_id)
        self._process.bus.publish(_CALLERS, f"{app_id}{_SEPARATOR}{user_id}")

    def deliveries_accepted(self) -> None:
        if self._worker is not None:
            self._worker.wake()
        self._process.bus.publish(_DELIVERIES, "")
        if not self._process.bus.listening:
            self._process.notices.tell()  # Redis is away: PostgreSQL tells those workers that listen to it


def listening(process: Process, worker: DeliveryWorker | None, front: Front | None) -> Coroutine[Any, Any, None]:
    """Hears the wake-ups of the other processes, for ever."""
    hub = process.hub

    def heard(topic: str, message: str) -> None:
        if front is not None and front.caches.heard(topic, message):
            return
        if topic == _DELIVERIES:
            if worker is not None:
                worker.wake()
            return
        app_id, _, name = message.partition(_SEPARATOR)
        if topic == _CHANGES:
            hub.scope_changed(app_id, name)
        elif topic == _MEMBERS:
            hub.members_changed(app_id, name)
        elif front is not None:
            front.door.revoked(app_id, name)
            hub.callers_changed(app_id, name)

    def resumed() -> None:
        # Whatever was said meanwhile is lost: look for yourself.
        if front is not None:
            front.door.forget_all()
        hub.look_everywhere()
        if worker is not None:
            worker.wake()

    topics = [_CHANGES, _MEMBERS, _DELIVERIES, _CALLERS, *(front.caches.topics if front is not None else ())]
    return process.bus.run_listener(topics, heard, resumed)
