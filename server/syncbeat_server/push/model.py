"""Defines the values of the push feature."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum, StrEnum, auto
from typing import Any

from syncbeat_server.directory.model import QuietHours, TokenUse

MAX_OTHER_SCOPES = 30
"""Number of scopes that a wake-up names beside its own; beyond it says only that there are more."""
QUEUE_ATTRIBUTES = {"messaging.system": "syncbeat", "messaging.destination.name": "deliveries"}
"""The attributes by which spans name the queue."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


class DeliveryState(StrEnum):
    """State of a delivery. The accepted deliveries are always the sum over these states."""

    SCHEDULED = "SCHEDULED"
    HELD = "HELD"
    PENDING = "PENDING"
    IN_FLIGHT = "IN_FLIGHT"
    SENT = "SENT"
    RECEIVED = "RECEIVED"
    OPENED = "OPENED"
    SUPPRESSED = "SUPPRESSED"
    EXPIRED = "EXPIRED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"


class Kind(StrEnum):
    """Kind of a notification: a MESSAGE is shown to the user, a SYNC only wakes the app unless it has content."""

    MESSAGE = "MESSAGE"
    SYNC = "SYNC"


class Lane(IntEnum):
    """Priority lane of the queue; the lower value is claimed first."""

    HIGH = 0
    NORMAL = 1


class Reason(StrEnum):
    """Explains a delivery's state where the state alone does not."""

    NONE = ""
    NO_TOKEN = "NO_TOKEN"  # noqa: S105  # a reason, no secret
    DUPLICATE = "DUPLICATE"
    MERGED = "MERGED"
    TRAILING = "TRAILING"
    LIVE_STREAM = "LIVE_STREAM"
    ALREADY_SEEN = "ALREADY_SEEN"
    DEVICE_GONE = "DEVICE_GONE"
    UNREGISTERED = "UNREGISTERED"
    WRONG_SENDER = "WRONG_SENDER"
    REJECTED = "REJECTED"
    PROVIDER_CONFIG = "PROVIDER_CONFIG"
    THROTTLED = "THROTTLED"
    UNAVAILABLE = "UNAVAILABLE"
    AMBIGUOUS = "AMBIGUOUS"
    RETRIES_EXHAUSTED = "RETRIES_EXHAUSTED"
    USER_DISABLED = "USER_DISABLED"
    MUTED = "MUTED"
    QUIET_HOURS = "QUIET_HOURS"
    DAILY_MAXIMUM = "DAILY_MAXIMUM"
    WAKE_BUDGET = "WAKE_BUDGET"
    REPLACED = "REPLACED"


DEFAULT_TTL_S = 3_600.0
"""The time to live of a notification, in seconds, whose caller names none."""
NOW_OR_NEVER_TTL_S = 10.0
"""Seconds within which a message with a time to live of 0 must be handed over: the longest that one attempt takes."""


@dataclass(frozen=True, slots=True)
class Content:
    """Content to show; all fields are empty for a silent wake-up.

    A template stands for title and body, rendered in the locale of each device. `texts` holds the rendered (title,
    body) by locale as they were at acceptance; it is stored apart from the other fields.
    """

    title: str = ""
    body: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    image_url: str = ""
    sound: str = ""
    badge: int | None = None
    click_action: str = ""
    channel_id: str = ""
    template: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False)

    @property
    def visible(self) -> bool:
        """True if the user sees a text."""
        return bool(self.title or self.body or self.template)

    @property
    def badge_only(self) -> bool:
        """True if the app's badge is all that the user sees."""
        return self.badge is not None and not self.visible

    @property
    def is_alert(self) -> bool:
        """True if it shows something, a text or a badge, and does not only wake the app."""
        return self.visible or self.badge_only

    @property
    def link(self) -> str:
        """URL that a tap opens, with its scheme in lower case because Android compares it so; empty if none."""
        scheme = link_scheme(self.click_action)
        return "" if scheme is None else f"{scheme.lower()}{self.click_action[len(scheme) :]}"


@dataclass(frozen=True, slots=True)
class Target:
    """Devices to reach: one device, all devices of a user, or those of all members of a scope with the cursor to reach.

    A user beside a scope limits it to that member, whose devices get the scope's cursor. `exclude_device_id` leaves out
    the device with this id of the user `exclude_device_of`, or of every user when that is None.
    """

    user_id: str | None = None
    device_id: str | None = None
    scope: str | None = None
    epoch: str | None = None
    sequence: int | None = None
    exclude_user_id: str | None = None
    exclude_device_id: str | None = None
    exclude_device_of: str | None = None


@dataclass(frozen=True, slots=True)
class NewNotification:
    """A notification to accept. Without a `dedupe_key`, or with a window of 0, it is never a duplicate.

    `due_at` is None for now; so is a time that has passed by the database's clock. `ttl_s` is in seconds from then; 0
    means now or never. `patient` is set when the caller named no time to live: then time spent held does not count
    against it. `called_off` is set when it was cancelled before its deliveries were written. `traceparent` is that of
    the call that it came with, '' for none.
    """

    app_id: str
    notification_id: str
    kind: Kind
    caller: str
    content: Content
    targets: tuple[Target, ...]
    type: str = ""
    dedupe_key: str = ""
    dedupe_window_s: float = 300.0
    collapse_key: str = ""
    lane: Lane = Lane.NORMAL
    critical: bool = False
    due_at: datetime | None = None
    ttl_s: float = DEFAULT_TTL_S
    patient: bool = False
    called_off: bool = False
    traceparent: str = ""

    @property
    def is_alert(self) -> bool:
        """True if it shows something for changes: one delivery per device covers all its scopes."""
        return self.kind is Kind.SYNC and self.content.is_alert


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Result of accepting a notification: the number of its deliveries, and of those the suppressed ones."""

    notification_id: str
    delivery_count: int
    suppressed_count: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """Deliveries of an app that are not done, by state.

    `oldest_overdue_s`: seconds for which the longest overdue one has been due; None: none is. `truncated`: there are
    more than were counted.
    """

    counts: Mapping[DeliveryState, int]
    oldest_overdue_s: float | None
    truncated: bool


# Not frozen, but nothing changes it: a frozen one of 39 fields takes ten times as long to make, which is 2 % of a
# delivery (`push_cpu_us_vs_firebase_admin`).
@dataclass(slots=True)
class ClaimedDelivery:
    """A delivery leased for one attempt, with everything that the attempt needs.

    As of `claimed_at`, the database's time: `ttl_s` is the seconds left to live, `age_s` the seconds since the first
    claim. `resends` counts how often it was leased to be sent again, `redirects` how often it went on to a newer token.
    `now_or_never`: its time to live is 0, so one attempt is made and the provider must not store it. `superseded`: a
    later one of its dedupe window is shown instead. `held_for_stream`: it waited for a live stream to deliver the
    change. `user_disabled`: the user was disabled or deleted since. `caller` is the principal that sent the
    notification. `other_scopes`: scopes for which the device was woken before and whose changes it has not shown.
    `traceparent` is that of the call that accepted the notification, '' if it was not traced.
    """

    app_id: str
    delivery_id: str
    lease_token: str
    notification_id: str
    user_id: str
    device_id: str
    platform: str
    registration_token: str
    token_registered_at: datetime
    kind: Kind
    type: str
    scope: str
    epoch: str
    sequence: int
    content: Content
    collapse_key: str
    lane: Lane
    attempt: int
    ttl_s: float
    age_s: float
    held_for_stream: bool
    already_seen: bool
    claimed_at: datetime
    user_disabled: bool = False
    critical: bool = False
    patient: bool = False
    redirects: int = 0
    resends: int = 0
    locale: str = ""
    time_zone: str = ""
    quiet: QuietHours | None = None
    max_per_day: int | None = None
    muted: bool = False
    now_or_never: bool = False
    superseded: bool = False
    caller: str = ""
    other_scopes: tuple[str, ...] = ()
    traceparent: str = ""

    @property
    def silent(self) -> bool:
        """True if it only wakes the app; the system of a device delivers few of those."""
        return self.kind is Kind.SYNC and not self.content.is_alert

    @property
    def provider_ttl_s(self) -> int:
        """Whole seconds for which a provider may store it."""
        return 0 if self.now_or_never else max(0, int(self.ttl_s))

    @property
    def device(self) -> tuple[str, str, str]:
        """Key of the device: (app, user, device)."""
        return (self.app_id, self.user_id, self.device_id)

    @property
    def token_use(self) -> TokenUse:
        """The registration token that it goes to, for what the provider says of that."""
        return TokenUse(*self.device, self.registration_token, self.token_registered_at, self.delivery_id)


class Verdict(StrEnum):
    """Result of an attempt."""

    SENT = "SENT"
    RETRY = "RETRY"
    DEAD_TOKEN = "DEAD_TOKEN"  # noqa: S105  # a verdict, no secret
    INVALID_TOKEN = "INVALID_TOKEN"  # noqa: S105  # a verdict, no secret
    REJECTED = "REJECTED"


class Blame(Enum):
    """Tells which other deliveries will fail as this one did: none, those of the platform, or all of the app.

    ACCESS: nothing was sent because there is no access token, nor will there be one before `retry_after_s`.
    """

    MESSAGE = auto()
    PLATFORM = auto()
    APP = auto()
    ACCESS = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdict of a provider on one attempt; `retry_after_s` in seconds if the provider asked for a delay."""

    verdict: Verdict
    reason: Reason = Reason.NONE
    provider_message_id: str = ""
    retry_after_s: float | None = None
    blame: Blame = Blame.MESSAGE


@dataclass(frozen=True, slots=True)
class DeliveryUpdate:
    """Change to record for a claimed delivery: its new state, and in how many seconds it is due again if it waits.

    Build it with `policy.transitions.update`, which takes state and reason from the transition table. For a wake-up
    that is SENT, `due_in_s` is the time to wait for an answer; 0: its answer is not awaited. `extends_ttl`: the time to
    live does not run while it waits. `redirected`: it goes to a newer registration token. `invalid_token`: the provider
    says that the token is malformed, and not only that it is unknown. `traceparent` is the attempt's, '' for none.
    """

    delivery: ClaimedDelivery
    state: DeliveryState
    reason: Reason
    provider_message_id: str = ""
    due_in_s: float = 0.0
    give_back_attempt: bool = False
    extends_ttl: bool = False
    redirected: bool = False
    invalid_token: bool = False
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Notification:
    """An accepted notification with the number of its deliveries by state.

    `resolved`: all its deliveries are written. `expanding`: they are being written.
    """

    notification_id: str
    kind: Kind
    content: Content
    type: str
    dedupe_key: str
    collapse_key: str
    lane: Lane
    created_at: datetime
    due_at: datetime
    expires_at: datetime
    counts: Mapping[DeliveryState, int]
    expanding: bool
    resolved: bool


@dataclass(frozen=True, slots=True)
class Delivery:
    """State and history of a notification's delivery to one device."""

    delivery_id: str
    notification_id: str
    user_id: str
    device_id: str
    scope: str
    state: DeliveryState
    reason: Reason
    attempts: int
    created_at: datetime
    updated_at: datetime
    due_at: datetime
    expires_at: datetime
    sent_at: datetime | None
    received_at: datetime | None
    opened_at: datetime | None
    ambiguous: bool


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Selects deliveries; an empty field does not filter."""

    notification_id: str = ""
    user_id: str = ""
    device_id: str = ""
    state: DeliveryState | None = None


def link_scheme(action: str) -> str | None:
    """Return the scheme of the action of a tap if that is a URL, and not the name of an intent or of a category."""
    scheme = _SCHEME.match(action)
    return None if scheme is None else scheme[1]


def content_fields(content: Content) -> dict[str, Any]:
    """Return the non-empty fields of the content by name, without `texts`."""
    values = {name: getattr(content, name) for name in Content.__slots__ if name != "texts"}
    return {name: value for name, value in values.items() if value not in ("", None, {})}


def device_columns(deliveries: Sequence[ClaimedDelivery]) -> tuple[list[str], list[str], list[str]]:
    """Return the keys of the deliveries' devices as columns: apps, users, devices."""
    return [d.app_id for d in deliveries], [d.user_id for d in deliveries], [d.device_id for d in deliveries]
