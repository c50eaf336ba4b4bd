"""Values of the push feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum, StrEnum, auto
from typing import Any

from syncbeat_server.directory.model import QuietHours
from syncbeat_server.push.links import is_link

MOST_OTHER_SCOPES = 30
"""So many are named beside a wake-up's own; of more only that there are."""


class DeliveryState(StrEnum):
    """Where a delivery is. What was accepted is always the sum of these."""

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
    """A message is shown to somebody; a sync notification only wakes the app."""

    MESSAGE = "MESSAGE"
    SYNC = "SYNC"


class Lane(IntEnum):
    """Which deliveries are claimed first."""

    HIGH = 0
    NORMAL = 1


class Reason(StrEnum):
    """Why a delivery is in its state, where the state alone does not say."""

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


NOW_S = 10.0
"""The latest that a message without time to live may be handed over: as long as one attempt takes at most."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content to show. All empty for a silent wake-up. A template stands for title and body, told in each locale.

    `texts` is what the template came to by locale when it was accepted, as (title, body); it is kept apart.
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
        """Whether somebody sees it."""
        return bool(self.title or self.body or self.template)

    @property
    def badge_alone(self) -> bool:
        """Whether the badge is all that somebody sees of it."""
        return self.badge is not None and not self.visible

    @property
    def alerts(self) -> bool:
        """True for one that shows something, and does not only wake the app."""
        return self.visible or self.badge_alone

    @property
    def link(self) -> str:
        """The URL that a tap opens, its scheme in lower case, as Android compares it; empty where it opens none."""
        if not is_link(self.click_action):
            return ""
        scheme, _, rest = self.click_action.partition(":")
        return f"{scheme.lower()}:{rest}"


@dataclass(frozen=True, slots=True)
class Target:
    """Some devices: one device, all of a user, or all of a scope's members with the cursor they should reach.

    A user beside a scope is the member that is meant: its device gets the scope's cursor. `exclude_device_of` is whose
    device is excluded; None: everybody's with its id.
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
    """A notification to accept. No `dedupe_key`, or no window: never a duplicate.

    `due_at`: None, or over by the database's clock, for now. `ttl_s`: seconds from then on; 0 for now or never.
    `patient`: its caller named no time to live, so that it lives on for as long as it is held. `called_off`: it was
    cancelled before its deliveries were written.
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
    ttl_s: float = 3600.0
    patient: bool = False
    called_off: bool = False

    @property
    def alerts(self) -> bool:
        """True for one that shows something for changes: one delivery a device, for all its scopes."""
        return self.kind is Kind.SYNC and self.content.alerts


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of a notification: its deliveries, and how many of them are suppressed."""

    notification_id: str
    delivery_count: int
    suppressed_count: int
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """One attempt to make: what, to which registration token, as which delivery.

    `ttl_s` is what is left until it expires, `age_s` the seconds since it was claimed for the first time, both as of
    `claimed_at`, the database's time. `resends` counts how often it was leased to be sent again. `at_once`: it has no
    time to live, so that one attempt is made and the provider is not to keep it.
    `superseded`: a later one of its window is shown in its place. `caller` is in whose name it was accepted.
    `other_scopes`: those of a wake-up's device that it was woken for before and has not shown.
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
    held: bool
    seen: bool
    claimed_at: datetime
    shut_out: bool = False
    critical: bool = False
    patient: bool = False
    moves: int = 0
    resends: int = 0
    locale: str = ""
    time_zone: str = ""
    quiet: QuietHours | None = None
    max_per_day: int | None = None
    muted: bool = False
    at_once: bool = False
    superseded: bool = False
    caller: str = ""
    other_scopes: tuple[str, ...] = ()

    @property
    def wakes(self) -> bool:
        """True for one that only wakes the app, which its system lets through now and then."""
        return self.kind is Kind.SYNC and not self.content.alerts

    @property
    def kept_s(self) -> int:
        """For how many seconds a provider may keep it."""
        return 0 if self.at_once else max(0, int(self.ttl_s))

    @property
    def device(self) -> tuple[str, str, str]:
        """(app, user, device)."""
        return (self.app_id, self.user_id, self.device_id)


class Verdict(StrEnum):
    """What an attempt came to."""

    SENT = "SENT"
    RETRY = "RETRY"
    DEAD_TOKEN = "DEAD_TOKEN"  # noqa: S105  # a verdict, no secret
    INVALID_TOKEN = "INVALID_TOKEN"  # noqa: S105  # the same
    REJECTED = "REJECTED"


class Blame(Enum):
    """What an attempt that failed tells of others: nothing, or that those of its platform or app will fare alike.

    ACCESS: nothing was sent, since there is no access token, and will not be before `retry_after_s`.
    """

    MESSAGE = auto()
    PLATFORM = auto()
    APP = auto()
    ACCESS = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict of a provider on one attempt; `retry_after_s` when the provider asked for a delay."""

    verdict: Verdict
    reason: Reason = Reason.NONE
    provider_message_id: str = ""
    retry_after_s: float | None = None
    blame: Blame = Blame.MESSAGE


@dataclass(frozen=True, slots=True)
class Finished:
    """How a claimed delivery goes on: its new state, and when it is due again if it waits.

    A wake-up that is SENT waits for its answer: it is looked at after `due_in_s`, or for 0 never again.
    `lives_on`: its time to live does not run while it waits. `moved`: it goes to a newer registration token.
    `invalid_token`: the provider says that its token is none, and not only that it does not know it.
    """

    delivery: ClaimedDelivery
    state: DeliveryState
    reason: Reason
    provider_message_id: str = ""
    due_in_s: float = 0.0
    give_back_attempt: bool = False
    lives_on: bool = False
    moved: bool = False
    invalid_token: bool = False


@dataclass(frozen=True, slots=True)
class Notification:
    """An accepted notification with the count of its deliveries in each state.

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
    """A notification's way to one device."""

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
    """Which deliveries to list; what is empty does not filter."""

    notification_id: str = ""
    user_id: str = ""
    device_id: str = ""
    state: DeliveryState | None = None


def content_fields(content: Content) -> dict[str, Any]:
    """The content as plain fields, without those that are empty."""
    values = {name: getattr(content, name) for name in Content.__slots__ if name != "texts"}
    return {name: value for name, value in values.items() if value not in ("", None, {})}


def device_columns(deliveries: Sequence[ClaimedDelivery]) -> tuple[list[str], list[str], list[str]]:
    """The (app, user, device) of deliveries, as columns."""
    return [d.app_id for d in deliveries], [d.user_id for d in deliveries], [d.device_id for d in deliveries]
