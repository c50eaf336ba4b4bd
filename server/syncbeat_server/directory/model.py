"""Defines devices, scope members, quiet hours and preferences."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

MAX_SCOPES = 2_000
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
