"""Defines devices, scope members, quiet hours and preferences, and the notices of changes that every feature sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from syncbeat_server.ratelimit.catalog import SCOPES_OF_USER

MAX_SCOPES = int(SCOPES_OF_USER.bound.capacity)
"""Scopes that a user may be a member of, and that are followed of a user who had more before this limit.

Hints name them all, and a request may show a cursor of each.
"""
REACH_HALF_LIFE_S = 86_400.0
"""The age in seconds at which an answer to a wake-up, or a miss, counts for half in a device's reach."""
FOREGROUND_S = 600.0
"""Seconds for which an app counts as on the screen after its device reported that."""


class Platform(StrEnum):
    """Names the platform of a device."""

    ANDROID = "ANDROID"
    IOS = "IOS"
    WEB = "WEB"


class TokenState(StrEnum):
    """Names the state of a device's registration token; only ACTIVE and STALE ones are pushed to."""

    NONE = "NONE"
    ACTIVE = "ACTIVE"
    DEAD = "DEAD"
    MOVED = "MOVED"
    STALE = "STALE"
    PRUNED = "PRUNED"
    QUARANTINED = "QUARANTINED"
    INVALID = "INVALID"


class MemberRole(StrEnum):
    """Names the access of a member to a scope."""

    READER = "READER"
    WRITER = "WRITER"


@dataclass(frozen=True, slots=True)
class Registration:
    """Holds the fields of a device's registration. Without a token it polls and streams, and gets no push."""

    app_id: str
    user_id: str
    device_id: str
    platform: Platform
    registration_token: str
    time_zone: str
    locale: str


@dataclass(frozen=True, slots=True)
class Device:
    """Describes an installation of an app. Its registration token is never returned to callers."""

    user_id: str
    device_id: str
    platform: Platform
    token_state: TokenState
    time_zone: str
    locale: str
    registered_at: datetime
    updated_at: datetime


class Holder(NamedTuple):
    """Names the device of an app that has a registration token."""

    user_id: str
    device_id: str


@dataclass(frozen=True, slots=True)
class TokenMove:
    """Describes a registration token's move away from a device.

    `refused`: it was given to nobody; `without`: the device has had no other token since.
    """

    previous: Holder
    refused: bool
    without: bool


@dataclass(frozen=True, slots=True)
class Member:
    """Holds a user's membership in a scope."""

    scope: str
    user_id: str
    role: MemberRole
    added_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Holds a range of minutes of the day, the end exclusive; an end at or before the start is on the next day.

    `zone` is an IANA name, or '' for that of each device.
    """

    start_minute: int
    end_minute: int
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Preferences:
    """Holds a user's limits on notifications. `max_per_day` None means the app's maximum."""

    quiet_hours: QuietHours | None = None
    max_per_day: int | None = None
    muted_types: tuple[str, ...] = ()
    updated_at: datetime | None = None


class TokenUse(NamedTuple):
    """Names a registration token that a delivery was sent to, as it was registered then."""

    app_id: str
    user_id: str
    device_id: str
    registration_token: str
    token_registered_at: datetime
    delivery_id: str


class ChangeNotifier(Protocol):
    """Notifies all processes of what a transaction changed, after its commit, so that caches and streams read again."""

    def scope_changed(self, app_id: str, scope: str) -> None:
        """Notify of a scope's new head, boost or expected change rate."""
        ...

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Notify of users who joined or left scopes."""
        ...

    def devices_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Notify of users of whom a device changed."""
        ...

    def caller_changed(self, app_id: str, user_id: str) -> None:
        """Notify of a user whose tokens may be revoked."""
        ...

    def deliveries_accepted(self) -> None:
        """Wake the workers: deliveries wait to be sent."""
        ...
