"""Values of the sync feature. Those that each hint makes a dozen of are tuples, which cost a third to make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple


class Priority(StrEnum):
    """How soon a device should ask again: a label of the interval, not its cause."""

    IMMEDIATE = "IMMEDIATE"
    FAST = "FAST"
    NORMAL = "NORMAL"
    SLOW = "SLOW"


class ActivityState(StrEnum):
    """Whether a person looks at the app."""

    FOREGROUND = "FOREGROUND"
    BACKGROUND = "BACKGROUND"


class Network(StrEnum):
    """What the device is connected by."""

    UNKNOWN = "UNKNOWN"
    WIFI = "WIFI"
    CELLULAR = "CELLULAR"


@dataclass(frozen=True, slots=True)
class Activity:
    """What a device says of itself. `idle_s` is the seconds since its user last did something."""

    state: ActivityState = ActivityState.FOREGROUND
    idle_s: float = 0.0
    network: Network = Network.UNKNOWN
    battery_low: bool = False


ScopeKey = tuple[str, str]
"""An app's id and the name of one of its scopes."""


class DeviceKey(NamedTuple):
    """Which device: its user's id is part of the key."""

    app_id: str
    user_id: str
    device_id: str


class Cursor(NamedTuple):
    """A place in the feed of a scope. No sequence: from now (a stream) or from the start (a list)."""

    scope: str
    epoch: str = ""
    sequence: int | None = None


class Poll(NamedTuple):
    """A device that asks when to come again, and shows `cursors`. No activity: it is as it said last.

    `explain`: it wants to be told how the hint came about.
    """

    device: DeviceKey
    cursors: Sequence[Cursor] = ()
    activity: Activity | None = None
    explain: bool = False


class Belief(NamedTuple):
    """What is known of one scope as of `at`: P(hot), and changes and seconds while hot and while cold (see
    `policy.belief`). Times are seconds since 1970."""

    hot: float
    hot_count: float
    hot_s: float
    cold_count: float
    cold_s: float
    at: float


class Windows(NamedTuple):
    """Changes of late and of the last hours, decayed up to `at`, of a scope that exists since `born`."""

    recent: float
    long: float
    at: float
    born: float


class Signal(NamedTuple):
    """What is known of a scope's changes. No belief: it has not changed yet.

    `present` and `presence_at` are the last that was heard of its writers: one came, or left. `triggered` is the share
    of the commits of late that woke devices.
    """

    belief: Belief | None
    windows: Windows
    present: bool = False
    presence_at: float = 0.0
    triggered: float = 0.0


class ScopeState(NamedTuple):
    """The head of a scope's feed and what is known of its changes; `boosted`: held at this tier until then.

    `pruned` is the highest sequence of a tombstone that was removed.
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
        """The head as a cursor."""
        return Cursor(self.scope, self.epoch, self.head)


class Reach(NamedTuple):
    """What wake-ups did on a device: counts as of `at` that decay. `usable`: it has a token to push to."""

    usable: bool = False
    answered: float = 0.0
    missed: float = 0.0
    at: float = 0.0


class Hint(NamedTuple):
    """When a device should ask again, and whether there is news now; `valid_s`: how long to go by it unheard;
    `more_scopes`: its user has more scopes than `heads` names.

    What it was made from is kept for measuring: the interval before pacing, the device's `attention`, the `residual`
    share of changes that only polls will find, and how many of those are expected a second, weighed by attention.
    """

    poll_interval_s: float
    priority: Priority
    next_poll_at: datetime
    changed: bool
    heads: tuple[Cursor, ...]
    prefer_stream: bool
    valid_s: float
    explanation: str = ""
    more_scopes: bool = False
    wanted_s: float = 0.0
    attention: float = 1.0
    residual: float = 1.0
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One row of a feed: the latest value of a key. `omitted_octets`: that of a value which is too large to be sent."""

    scope: str
    epoch: str
    key: str
    value_json: str
    deleted: bool
    sequence: int
    changed_at: datetime
    omitted_octets: int = 0


@dataclass(frozen=True, slots=True)
class FeedPage:
    """Changes after a cursor, up to `next`, where the next page starts; `reset`: nothing can follow that cursor, and
    this is the first page of the whole feed."""

    state: ScopeState
    changes: tuple[Change, ...]
    next: Cursor
    more: bool = False
    reset: bool = False

    @property
    def is_unread(self) -> bool:
        """Whether there was no room for any of it: it is where it was."""
        return self.more and not self.changes


@dataclass(frozen=True, slots=True)
class NewChange:
    """A change to publish: a JSON merge patch (RFC 7396) or a deletion, if `expected_sequence` is met."""

    scope: str
    key: str
    merge_patch_json: str
    deleted: bool = False
    expected_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class ChangesSent:
    """Stream: news of one scope, oldest first."""

    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Stream: everything up to these cursors was sent, or, of all scopes, up to where `token` says."""

    cursors: tuple[Cursor, ...]
    hint: Hint
    token_remaining_s: float | None
    token: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """Stream: the cursor was not of this feed; list it again after `refetch_delay_s`, it goes on from `head`."""

    head: Cursor
    refetch_delay_s: float


@dataclass(frozen=True, slots=True)
class ResetAll:
    """Stream of all scopes: the token was of another feed; drop everything. The stream goes on from `token`, which is
    the start; who lists by other means does that after `refetch_delay_s`."""

    token: str
    refetch_delay_s: float


@dataclass(frozen=True, slots=True)
class Drain:
    """Stream: this process stops; connect again after `reconnect_delay_s`."""

    reconnect_delay_s: float


class Extent(NamedTuple):
    """How much of a database would begin new epochs."""

    database: str
    apps: int
    scopes: int


StreamEvent = ChangesSent | Hint | Checkpoint | Reset | ResetAll | Drain
