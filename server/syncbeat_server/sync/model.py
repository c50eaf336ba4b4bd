"""Defines the values of the sync feature.

Those that each hint creates a dozen of are tuples, at a third of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

ScopeKey = tuple[str, str]
"""An app's id and the name of one of its scopes."""
UserKey = tuple[str, str]
"""An app's id and that of one of its users."""


class Priority(StrEnum):
    """Labels the interval of a hint by its urgency; it is not the cause of the interval."""

    IMMEDIATE = "IMMEDIATE"
    FAST = "FAST"
    NORMAL = "NORMAL"
    SLOW = "SLOW"


class ActivityState(StrEnum):
    """Tells an app on the screen from one in the background."""

    FOREGROUND = "FOREGROUND"
    BACKGROUND = "BACKGROUND"


class Network(StrEnum):
    """Names the kind of network that a device is connected by."""

    UNKNOWN = "UNKNOWN"
    WIFI = "WIFI"
    CELLULAR = "CELLULAR"


@dataclass(frozen=True, slots=True)
class Activity:
    """Holds what a device reports of itself. `idle_s` is the time since its user last did something."""

    state: ActivityState = ActivityState.FOREGROUND
    idle_s: float = 0.0
    network: Network = Network.UNKNOWN
    battery_low: bool = False


class DeviceKey(NamedTuple):
    """Identifies a device; its user's id is part of the key."""

    app_id: str
    user_id: str
    device_id: str


class Cursor(NamedTuple):
    """Names a place in the feed of a scope. Without a sequence it is now (for a stream) or the start (for a list)."""

    scope: str
    epoch: str = ""
    sequence: int | None = None


class Poll(NamedTuple):
    """Asks for a hint, and shows the device's `cursors`. Without an activity the last reported one counts.

    `explain`: the hint is to carry an explanation.
    """

    device: DeviceKey
    cursors: Sequence[Cursor] = ()
    activity: Activity | None = None
    explain: bool = False


class Belief(NamedTuple):
    """Holds what is known of one scope as of `at` (see `policy.belief`).

    `hot` is P(hot); the others count changes and seconds while hot and while cold. Times are seconds since 1970.
    """

    hot: float
    hot_count: float
    hot_s: float
    cold_count: float
    cold_s: float
    at: float


class Windows(NamedTuple):
    """Counts the changes of the last minutes and hours, decayed to `at`, of a scope that exists since `born`."""

    recent: float
    long: float
    at: float
    born: float


class Signal(NamedTuple):
    """Holds what is known of a scope's changes. Without a belief it has not changed yet.

    `present` and `presence_at` describe the last arrival or departure of a writer. `triggered` is the share of recent
    commits that woke devices.
    """

    belief: Belief | None
    windows: Windows
    present: bool = False
    presence_at: float = 0.0
    triggered: float = 0.0


class ScopeState(NamedTuple):
    """Holds the head of a scope's feed and what is known of its changes.

    `boosted` is the tier that it is kept at until `boosted_until`; `pruned` is the highest sequence of a removed
    tombstone.
    """

    scope: str
    epoch: str
    head: int
    signal: Signal
    boosted: Priority | None = None
    boosted_until: float = 0.0
    pruned: int = 0

    @property
    def cursor(self) -> Cursor:
        """Return the head as a cursor."""
        return Cursor(self.scope, self.epoch, self.head)


class Reach(NamedTuple):
    """Counts the wake-ups that a device answered and missed, decayed to `at`. `usable`: it has a token to push to."""

    usable: bool = False
    answered: float = 0.0
    missed: float = 0.0
    at: float = 0.0


class Hint(NamedTuple):
    """Tells a device when to ask again, and if there is news now.

    `next_poll_at` is in unix seconds; `valid_s` is the time for which to go by the hint while no other arrives;
    `more_scopes`: its user has more scopes than `heads` names. The last fields are its inputs, kept for measuring: the
    interval before pacing, the device's `attention`, the `residual` share of changes that only polls will find, and
    the expected rate of those, weighted by attention.
    """

    poll_interval_s: float
    priority: Priority
    next_poll_at: float
    changed: bool
    heads: tuple[Cursor, ...]
    prefer_stream: bool
    valid_s: float
    explanation: str = ""
    more_scopes: bool = False
    unpaced_s: float = 0.0
    attention: float = 1.0
    residual: float = 1.0
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Change:
    """Holds one row of a feed: the latest value of a key.

    `omitted_octets` is the size of a value that is too large to be sent; `source_time` is that which it came with.
    """

    scope: str
    epoch: str
    key: str
    value_json: str
    deleted: bool
    sequence: int
    changed_at: datetime
    omitted_octets: int = 0
    source_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Holds the changes after a cursor, up to `next`, where the next page starts.

    `reset`: that cursor cannot be resumed, and this is the first page of the whole feed.
    """

    state: ScopeState
    changes: tuple[Change, ...]
    next: Cursor
    more: bool = False
    reset: bool = False

    @property
    def is_deferred(self) -> bool:
        """Return True if there was no room for any of the page: its cursor has not moved."""
        return self.more and not self.changes


@dataclass(frozen=True, slots=True)
class NewChange:
    """Describes a change to publish: a JSON merge patch (RFC 7396) or a deletion, if `expected_sequence` matches.

    With a `source_time`, which is when it was made at its source, `merge_patch_json` is the whole value, and the change
    is written only if it is later than what the key has (`feed/source_order.py`).
    """

    scope: str
    key: str
    merge_patch_json: str
    deleted: bool = False
    expected_sequence: int | None = None
    source_time: datetime | None = None


class WriteOutcome(StrEnum):
    """Names what became of a change that has a source time: WRITTEN, or why it was not.

    UNCHANGED: the key has this value; its source time is now that of the change, if that is later.
    """

    WRITTEN = "WRITTEN"
    SUPERSEDED = "SUPERSEDED"
    UNCHANGED = "UNCHANGED"


@dataclass(frozen=True, slots=True)
class ChangesSent:
    """Stream event: changes of one scope, oldest first."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Stream event: everything up to these cursors was sent, or, in a stream of all scopes, up to `token`."""

    cursors: tuple[Cursor, ...]
    hint: Hint
    token_remaining_s: float | None
    token: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """Stream event: the cursor is not of this feed.

    List it again after `refetch_delay_s`; the stream continues from `head`.
    """

    head: Cursor
    refetch_delay_s: float


@dataclass(frozen=True, slots=True)
class ResetAll:
    """Stream event of all scopes: the token is not of this feed; drop everything.

    The stream continues from `token`, which is the start. Clients that list by other means do so after
    `refetch_delay_s`.
    """

    token: str
    refetch_delay_s: float


@dataclass(frozen=True, slots=True)
class Drain:
    """Stream event: this process stops; connect again after `reconnect_delay_s`."""

    reconnect_delay_s: float


class Extent(NamedTuple):
    """Counts the apps and scopes of a database that would begin new epochs."""

    database: str
    apps: int
    scopes: int


StreamEvent = ChangesSent | Hint | Checkpoint | Reset | ResetAll | Drain


@dataclass(frozen=True)
class SweepRule:
    """Bounds of the sweeps, which find by looking what no wake-up told; no setting changes them."""

    every_s: float = 5.0
    max_rows: int = 10_000
    """Rows of one kind that a sweep reads; where there are more, it takes everything for changed."""
    heads_per_read: int = 5_000


DEFAULT_SWEEP = SweepRule()
