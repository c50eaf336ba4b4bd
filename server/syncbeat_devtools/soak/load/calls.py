"""Makes the calls of a run, as an app or a backend would, and finds how old changes are when they arrive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from syncbeat import SyncbeatClient
from syncbeat.v1 import auth_service_pb2 as auth
from syncbeat.v1 import core_pb2 as core
from syncbeat.v1 import event_service_pb2 as event
from syncbeat.v1 import push_service_pb2 as push
from syncbeat.v1 import sync_service_pb2 as sync
from syncbeat_devtools.soak.load.fleet import POLLING_DEVICE, PUSHED_DEVICE, User
from syncbeat_server.clock import Clock

_KEYS = 64
"""The keys of a scope that publishes take in turn: a feed keeps the latest value of each."""
_SOURCE = "syncbeat-soak"
_PAGE = 1_000


class Calls:
    """Makes calls over a few connections, in turn.

    A published value carries the moment of its call by this process's clock, and the process's own name beside it, so
    that whoever gets it knows its age; `on_age` is told it, with True for a stream.
    """

    def __init__(
        self,
        clients: Sequence[SyncbeatClient],
        clock: Clock,
        life: str,
        on_age: Callable[[float, bool], None],
    ) -> None:
        self._clients = clients
        self._clock = clock
        self._life = life
        self._on_age = on_age
        self._turn = 0

    def _client(self) -> SyncbeatClient:
        self._turn = (self._turn + 1) % len(self._clients)
        return self._clients[self._turn]

    async def poll(self, user: User) -> sync.Hint:
        """Ask when to ask again, with the cursor of what the device has."""
        request = sync.GetHintRequest(
            user_id=user.named,
            device_id=POLLING_DEVICE,
            cursors=[user.cursor],
            activity=sync.Activity(state=sync.ACTIVITY_STATE_FOREGROUND),
        )
        return (await self._client().sync.GetHint(request, metadata=user.metadata)).hint

    async def list_page(self, user: User) -> bool:
        """Fetch a page of what the device lacks. Returns True if there is another."""
        request = sync.ListChangesRequest(
            user_id=user.named, device_id=POLLING_DEVICE, cursor=user.cursor, page_size=_PAGE
        )
        answer = await self._client().sync.ListChanges(request, metadata=user.metadata)
        self._tell_ages(answer.changes, by_stream=False)
        user.cursor = answer.next_cursor
        return bool(answer.more)

    async def publish(self, scope: str, number: int) -> None:
        """Publish a change as the backend does."""
        await self._client().sync.PublishChanges(sync.PublishChangesRequest(changes=[self._change(scope, number)]))

    async def ingest(self, scope: str, event_id: str, number: int) -> None:
        """Tell of an event that changes a scope.

        Raises:
            EventFailed: it was recorded, and its effects could not be carried out.
        """
        answer = await self._client().events.IngestEvent(
            event.IngestEventRequest(
                source=_SOURCE,
                event_id=event_id,
                type="soak",
                effects=event.EventEffects(changes=[self._change(scope, number)]),
            )
        )
        if answer.receipt.state == event.EVENT_STATE_FAILED:
            raise EventFailed(answer.receipt.failure)

    async def send(self, user: User) -> str:
        """Send a notification to a device. Returns its id."""
        device = core.DeviceRef(user_id=user.user_id, device_id=PUSHED_DEVICE)
        answer = await self._client().push.SendNotification(
            push.SendNotificationRequest(
                device_ids=core.DeviceRefs(refs=[device]),
                notification=core.Notification(title="Syncbeat", body="soak"),
                critical=True,  # else the day's maximum of a user holds most of them
            )
        )
        return str(answer.notification_id)

    async def delivery_states(self, notification_id: str) -> dict[str, int]:
        """Return how many deliveries of a notification are in each state."""
        answer = await self._client().push.GetNotification(push.GetNotificationRequest(notification_id=notification_id))
        return {
            push.DeliveryState.Name(one.state).removeprefix("DELIVERY_STATE_"): int(one.count) for one in answer.counts
        }

    async def refresh(self, user: User) -> None:
        """Renew a user's tokens."""
        user.take(
            await self._client().auth.RefreshSession(auth.RefreshSessionRequest(refresh_token=user.refresh_token))
        )

    def open_stream(self, user: User) -> Any:
        """Open a stream of a user's scopes from now on. Returns the call, to be read and cancelled."""
        request = sync.WatchHintsRequest(user_id=user.named)
        return self._client().sync.WatchHints(request, metadata=user.metadata)

    def read_stream_message(self, message: sync.WatchHintsResponse) -> None:
        """Find the age of the change that a stream brought, if it is one."""
        if message.WhichOneof("event") == "change":
            self._tell_ages([message.change], by_stream=True)

    def _change(self, scope: str, number: int) -> core.NewChange:
        value = json.dumps({"life": self._life, "at": self._clock.monotonic()})
        return core.NewChange(scope=scope, key=f"key-{number % _KEYS}", merge_patch_json=value)

    def _tell_ages(self, changes: Iterable[sync.Change], *, by_stream: bool) -> None:
        now = self._clock.monotonic()
        for change in changes:
            value = json.loads(change.value_json or "null")
            if isinstance(value, dict) and value.get("life") == self._life:
                self._on_age(now - float(value["at"]), by_stream)


class EventFailed(Exception):
    """An event was recorded, and its effects could not be carried out."""
