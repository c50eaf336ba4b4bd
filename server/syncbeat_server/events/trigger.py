"""Makes the notification of a trigger: what wakes the devices of the members of changed scopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from syncbeat_server.push.model import DEFAULT_TTL_S, Content, Kind, Lane, NewNotification, Target
from syncbeat_server.sync.model import Cursor


@dataclass(frozen=True)
class Trigger:
    """Wakes the devices of all members but the excluded ones. Without content the wake-up is silent.

    `exclude_device_of` is the user whose device is excluded; None: the devices of all users with that id.
    `traceparent` is that of the call that it came with, '' for none.
    """

    type: str
    exclude_user_id: str
    exclude_device_id: str
    content: Content
    dedupe_window_s: float
    exclude_device_of: str | None = None
    traceparent: str = ""

    def wake_up(self, app_id: str, caller: str, heads: Sequence[Cursor], notification_id: str) -> NewNotification:
        """Return what wakes the devices once these heads are committed; the deliveries are done when they are there."""
        return NewNotification(
            app_id=app_id,
            notification_id=notification_id,
            kind=Kind.SYNC,
            caller=caller,
            content=self.content,
            targets=tuple(
                Target(
                    scope=head.scope,
                    epoch=head.epoch,
                    sequence=head.sequence,
                    exclude_user_id=self.exclude_user_id or None,
                    exclude_device_id=self.exclude_device_id or None,
                    exclude_device_of=self.exclude_device_of,
                )
                for head in heads
            ),
            type=self.type,
            dedupe_key=f"sync:{self.type}" if self.dedupe_window_s > 0 else "",
            dedupe_window_s=self.dedupe_window_s,
            lane=Lane.HIGH,
            ttl_s=DEFAULT_TTL_S + self.dedupe_window_s,
            patient=self.content.is_alert,
            traceparent=self.traceparent,
        )
