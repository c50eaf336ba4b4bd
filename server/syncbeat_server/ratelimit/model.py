"""Defines method classes, rates, and the tiers that an app grants its users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


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
    """

    tiers: Mapping[str, Tier]
    default_tier: str | None
    claim: str | None
