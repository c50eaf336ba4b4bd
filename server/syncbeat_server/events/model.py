"""Defines events, their effects, and the receipts that their senders get."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from syncbeat_server.directory.model import Member
from syncbeat_server.events.trigger import Trigger
from syncbeat_server.push.model import DEFAULT_TTL_S, Content, Lane, Target
from syncbeat_server.sync.model import Cursor, NewChange


class EventState(StrEnum):
    """Names what became of an event. DUPLICATE is in receipts only: no event is stored as one."""

    ACCEPTED = "ACCEPTED"
    DUPLICATE = "DUPLICATE"
    STALE = "STALE"
    FAILED = "FAILED"


class UserAction(StrEnum):
    """Names what an event does to a user."""

    ENSURE = "ENSURE"
    DISABLE = "DISABLE"
    ENABLE = "ENABLE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class UserEffect:
    """Does something to a user."""

    user_id: str
    action: UserAction


@dataclass(frozen=True, slots=True)
class MemberEffect:
    """Adds members to a scope and removes users from it. A user in both is added."""

    scope: str
    add: tuple[Member, ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TierEffect:
    """Grants a user a tier; an empty one takes the grant back."""

    user_id: str
    tier: str


@dataclass(frozen=True, slots=True)
class NotificationEffect:
    """Sends a notification; the fields mean what they mean in `push.model.NewNotification`."""

    content: Content
    targets: tuple[Target, ...]
    type: str = ""
    dedupe_key: str = ""
    dedupe_window_s: float = 300.0
    collapse_key: str = ""
    lane: Lane = Lane.NORMAL
    critical: bool = False
    ttl_s: float = DEFAULT_TTL_S
    patient: bool = True


@dataclass(frozen=True, slots=True)
class Effects:
    """Holds what follows from an event, all or nothing, in this order. `trigger` comes with changes only."""

    users: tuple[UserEffect, ...] = ()
    members: tuple[MemberEffect, ...] = ()
    tiers: tuple[TierEffect, ...] = ()
    changes: tuple[NewChange, ...] = ()
    trigger: Trigger | None = None
    notification: NotificationEffect | None = None


NO_EFFECTS = Effects()
"""The effects of an event that is only recorded."""


class EventKey(NamedTuple):
    """Identifies an event: the primary key of its row."""

    app_id: str
    source: str
    event_id: str


class OrderKey(NamedTuple):
    """Names what events are ordered by; without a name they are not ordered."""

    app_id: str
    source: str
    name: str


@dataclass(frozen=True, slots=True)
class IncomingEvent:
    """Holds an event as it came in, with its effects.

    Attributes:
        caller: Who sent it, as in records of who did something (`service:backend`).
        ordering_key: What it is ordered by within its source; empty: by nothing. The door fills in the subject.
        occurred_at: When it happened; None: now.
        payload_json: What it carried, for the record.
        content_hash: Tells a repetition from another event under the same id.
        methods: The RPCs that its sender may call, each effect being one; None: all.
        traceparent: That of the call that it came with, for a batch of several; '' for none.
    """

    app_id: str
    caller: str
    source: str
    event_id: str
    type: str
    subject: str
    ordering_key: str
    occurred_at: datetime | None
    payload_json: str
    effects: Effects
    content_hash: bytes
    methods: frozenset[str] | None = None
    traceparent: str = ""

    @property
    def key(self) -> EventKey:
        """Return what identifies it."""
        return EventKey(self.app_id, self.source, self.event_id)

    @property
    def order(self) -> OrderKey | None:
        """Return what it is ordered by; None: nothing."""
        return OrderKey(self.app_id, self.source, self.ordering_key) if self.ordering_key else None


@dataclass(frozen=True, slots=True)
class EffectResult:
    """Holds what effects answer that were carried out: new heads, the notifications of the trigger and their own."""

    heads: tuple[Cursor, ...] = ()
    trigger_notification_id: str = ""
    notification_id: str = ""


NO_RESULT = EffectResult()
"""The result of an event without effects, or whose effects were not carried out."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Says what became of an event: by this call (`state`), and what it is now (`event_state`)."""

    state: EventState
    event_state: EventState
    first_seen_at: datetime
    failure: str = ""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Answers the sender of an event."""

    receipt: Receipt
    result: EffectResult = NO_RESULT


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """Describes an event as it is recorded. `next_attempt_at` None: its effects are not retried any more."""

    source: str
    event_id: str
    type: str
    subject: str
    ordering_key: str
    occurred_at: datetime
    payload_json: str
    state: EventState
    first_seen_at: datetime
    updated_at: datetime
    attempts: int
    duplicate_count: int
    failure: str
    deadline_at: datetime
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Chooses events of an app: of a source, in a state. Empty and None: of any."""

    source: str = ""
    state: EventState | None = None


class ListPlace(NamedTuple):
    """Names the event after which a page begins; lists are newest first."""

    first_seen_at: datetime
    source: str
    event_id: str


LIST_START = ListPlace(datetime.max.replace(tzinfo=UTC), "", "")
"""The place before the newest event."""


@dataclass(frozen=True, slots=True)
class EventRule:
    """Bounds the life of an event's effects, in seconds.

    The effects of a FAILED event are retried after `first_retry_s`, then after twice as long each time, up to
    `longest_retry_s`, and never later than `give_up_s` after it came first.
    """

    give_up_s: float = 86_400.0
    first_retry_s: float = 1.0
    longest_retry_s: float = 300.0
