"""Devices and scope members."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

MAX_SCOPES = 2_000
"""How many scopes a user may be a member of, and how many of them are followed of who had more before: hints name them
all, and a request may show a cursor of each."""
FOREGROUND_S = 600.0
"""For how long an app counts as on the screen after its device has reported that."""
REACH_HALF_LIFE_S = 86_400.0
"""The time, in seconds, after which a wake-up that a device answered, or missed, counts for half."""


class Platform(StrEnum):
    """What a device runs."""

    ANDROID = "ANDROID"
    IOS = "IOS"
    WEB = "WEB"


class TokenState(StrEnum):
    """Whether a device can be pushed to."""

    NONE = "NONE"
    ACTIVE = "ACTIVE"
    DEAD = "DEAD"
    MOVED = "MOVED"
    STALE = "STALE"
    PRUNED = "PRUNED"
    QUARANTINED = "QUARANTINED"
    INVALID = "INVALID"


class MemberRole(StrEnum):
    """What a member may do with a scope."""

    READER = "READER"
    WRITER = "WRITER"


@dataclass(frozen=True, slots=True)
class Registration:
    """What a device says when it registers. No token: it polls and streams, and gets no push."""

    app_id: str
    user_id: str
    device_id: str
    platform: Platform
    registration_token: str
    time_zone: str
    locale: str


@dataclass(frozen=True, slots=True)
class Device:
    """An installation of an app. Its registration token is never told."""

    user_id: str
    device_id: str
    platform: Platform
    token_state: TokenState
    time_zone: str
    locale: str
    registered_at: datetime
    updated_at: datetime


class Holder(NamedTuple):
    """The device of an app that has a registration token."""

    user_id: str
    device_id: str


@dataclass(frozen=True, slots=True)
class TokenMove:
    """A registration token went from a device. `refused`: to nobody; `without`: the device has had no other since."""

    previous: Holder
    refused: bool
    without: bool


@dataclass(frozen=True, slots=True)
class Member:
    """A user's part in a scope."""

    scope: str
    user_id: str
    role: MemberRole
    added_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Minutes of the day, to before the end; an end at or before the start is on the next day.

    `zone` is an IANA name, or '' for that of each device.
    """

    start_minute: int
    end_minute: int
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a user wants to be spared. `max_per_day` None: the app's maximum."""

    quiet_hours: QuietHours | None = None
    max_per_day: int | None = None
    muted_types: tuple[str, ...] = ()
    updated_at: datetime | None = None
