"""Defines method classes, rates, and the tiers that an app grants its users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import NamedTuple


class MethodClass(StrEnum):
    """Names a class of RPCs that share a limit. BYTES counts octets of requests: a call's cost is their number."""

    HINT = "hint"
    PUBLISH = "publish"
    SEND = "send"
    EVENT = "event"
    STREAM = "stream"
    OTHER = "other"
    BYTES = "bytes"


class LimitSubject(StrEnum):
    """Names what a limit is counted by: all of an app, one caller, one device, or one scope."""

    APP = "app"
    PRINCIPAL = "principal"
    DEVICE = "device"
    SCOPE = "scope"


@dataclass(frozen=True, slots=True)
class Rate:
    """Holds a sustained rate and the burst above it: the emission interval and the tolerance of a GCRA.

    `per_second` 0 refuses all.
    """

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class TierLimit:
    """Limits one class of calls of one kind of subject. None: no limit of that sort; a quota of 0 refuses all."""

    subject: LimitSubject
    method_class: MethodClass
    rate: Rate | None
    monthly_quota: int | None


@dataclass(frozen=True, slots=True)
class Tier:
    """Holds the limits that an app grants under one name, such as `free`."""

    name: str
    limits: tuple[TierLimit, ...]


@dataclass(frozen=True, slots=True)
class TierPolicy:
    """Holds an app's tiers and how its users come by one.

    Attributes:
        default_tier: The tier of users who have none of their own; None: they are unlimited.
        claim: The claim of access tokens that names a user's tier; None: no claim does.
        time_zone: The IANA time zone in which the months of quotas begin.
    """

    tiers: Mapping[str, Tier]
    default_tier: str | None
    claim: str | None
    time_zone: str = "UTC"


UNLIMITED = TierPolicy({}, None, None)
"""The policy of an app without tiers."""


class TierSource(StrEnum):
    """Names where a user's tier comes from."""

    SET = "SET"
    """`SetUserTier` set it."""
    CLAIM = "CLAIM"
    """The claim of the user's token decides, which is not known without the token; the default holds without it."""
    DEFAULT = "DEFAULT"
    """It is the app's default, or none."""


@dataclass(frozen=True, slots=True)
class UserTier:
    """Describes a user's tier as far as it is known without the user's token.

    Attributes:
        name: The tier that holds; empty: none, which means no limits.
        stored: What `SetUserTier` set, also if the app has no such tier any more; empty: nothing.
    """

    name: str
    source: TierSource
    stored: str


class QuotaKey(NamedTuple):
    """Names a count in a month, which its first date names.

    `name` is the principal's; of an app it is empty, or a tier's whose users are counted together.
    """

    app_id: str
    subject: str
    name: str
    method_class: str
    month: date


class QuotaCharge(NamedTuple):
    """Holds what a call takes of a limit's monthly quota: 1, or the octets of its request.

    `tier`, of a limit by app: the name of the tier whose users it counts together; empty: it counts all callers.
    """

    limit: TierLimit
    cost: int
    tier: str = ""


class QuotaDecision(NamedTuple):
    """Tells if a call is within its monthly quotas, by the strictest of them.

    Attributes:
        limit: The quota.
        remaining: What is left of it, after this call if it is admitted.
        resets_at: Its month's end, in seconds since 1970.
        by: The limit that has the quota.
    """

    admitted: bool
    limit: int
    remaining: int
    resets_at: float
    by: TierLimit | None = None


NO_QUOTA = QuotaDecision(True, 0, 0, 0.0)
"""The decision of a call whose limits have no quota."""
