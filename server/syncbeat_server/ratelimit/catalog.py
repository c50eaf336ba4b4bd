"""Lists every limit that a caller or device can meet: its bound, its default, and its fate while Redis is away.

Features take their bounds from here, and docs/reference/limits.md is written from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from syncbeat_server.defaults import DEVICES_PER_USER, STREAMS_PER_DEVICE, STREAMS_PER_USER
from syncbeat_server.ratelimit.policy.decision import Bound

_STREAM_RETRY_S = 30.0  # within 80 s a connection that is dead has been noticed, and its streams are gone


class Counted(StrEnum):
    """Names the places where limits are counted."""

    REDIS = "Redis, for all processes"
    POSTGRES = "PostgreSQL"
    PROCESS = "each process"


class WithoutRedis(StrEnum):
    """Names the fates of limits while Redis is away."""

    OPEN = "open: all processes together admit at most twice the limit"
    EIGHTH = "open: each process takes an eighth"
    SAME = "the same"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit. `default` says its bound in words, and the setting that changes it."""

    name: str
    default: str
    counted: Counted
    without_redis: WithoutRedis
    refusal: str
    bound: Bound


def _rows(name: str, default: str, most: float, retry_s: float = 60.0, refusal: str = "RATE_LIMITED") -> Limit:
    return Limit(name, default, Counted.POSTGRES, WithoutRedis.SAME, refusal, Bound(most, retry_s=retry_s))


DEVICES_OF_USER = _rows("devices of a user", str(DEVICES_PER_USER), DEVICES_PER_USER)
MEMBERS_OF_SCOPE = _rows("members of a scope", "10,000", 10_000)
SCOPES_OF_USER = _rows("scopes of a user", "2,000", 2_000)
MOVES_OF_TOKEN = _rows("moves of a registration token between devices", "10 in 24 hours", 10, retry_s=3_600.0)
# Far more often than people share a phone, and yet so seldom that nobody who knows another's token can keep it from its
# owner for ever.
RELEASES_OF_TOKEN = _rows(
    "refused moves that take a registration token from its device all the same",
    "100 in 24 hours",
    100,
    retry_s=3_600.0,
    refusal="RATE_LIMITED, and the device keeps its token",
)
SHOWN_A_DAY = _rows(
    "messages shown on a device a day",
    "none: the user's preferences, or `MAX_PER_DAY` of the app",
    float("inf"),
    refusal="held until the next day",
)
WAKES_OF_ANDROID = Limit(
    "silent wake-ups of an Android device",
    "20 at once, one more every 3 minutes",
    Counted.POSTGRES,
    WithoutRedis.SAME,
    "held until there is one",
    Bound(20.0, 1 / 180.0),
)
WAKES_OF_IOS = Limit(
    "silent wake-ups of an iOS device",
    "3 at once, one more every 20 minutes",
    Counted.POSTGRES,
    WithoutRedis.SAME,
    "held until there is one",
    Bound(3.0, 1 / 1_200.0),
)
STREAMS_OF_USER = Limit(
    "streams of a user",
    f"{STREAMS_PER_USER} (`SYNCBEAT_STREAMS_PER_USER`)",
    Counted.PROCESS,
    WithoutRedis.SAME,
    "RATE_LIMITED",
    Bound(STREAMS_PER_USER, retry_s=_STREAM_RETRY_S),
)
STREAMS_OF_DEVICE = Limit(
    "streams of a device",
    f"{STREAMS_PER_DEVICE} (`SYNCBEAT_STREAMS_PER_DEVICE`)",
    Counted.PROCESS,
    WithoutRedis.SAME,
    "RATE_LIMITED",
    Bound(STREAMS_PER_DEVICE, retry_s=_STREAM_RETRY_S),
)
REFRESHES_OF_SESSION = Limit(
    "refreshes of a session",
    "60 a minute (`SYNCBEAT_REFRESHES_PER_MINUTE`)",
    Counted.PROCESS,
    WithoutRedis.SAME,
    "RATE_LIMITED",
    Bound(60.0, 1.0),
)
FORGED_REFRESHES = Limit(
    "forged refresh tokens from an address",
    "30 a minute (`SYNCBEAT_WRONG_REFRESHES_PER_MINUTE`)",
    Counted.PROCESS,
    WithoutRedis.SAME,
    "RATE_LIMITED",
    Bound(30.0, 0.5),
)
CALLS_IN_FLIGHT = Limit(
    "calls under way",
    "2,000 (`SYNCBEAT_MAX_IN_FLIGHT`); what can wait is shed first",
    Counted.PROCESS,
    WithoutRedis.SAME,
    "OVERLOADED",
    Bound(2_000.0),
)
CALLS_BY_RATE = Limit(
    "calls and octets of requests by app, principal, device and scope",
    "none: tiers of the apps file",
    Counted.REDIS,
    WithoutRedis.OPEN,
    "RATE_LIMITED",
    Bound(float("inf")),
)
CALLS_AT_RATE_ZERO = Limit(
    "calls of a class whose rate is 0",
    "none: tiers of the apps file",
    Counted.PROCESS,
    WithoutRedis.CLOSED,
    "RATE_LIMITED",
    Bound(0.0, retry_s=3_600.0),
)
MONTHLY_QUOTAS = Limit(
    "monthly quotas of calls and octets by app and principal",
    "none: tiers of the apps file",
    Counted.POSTGRES,
    WithoutRedis.SAME,
    "RATE_LIMITED",
    Bound(float("inf")),
)
SENDS_OF_PROJECT = Limit(
    "pushes of an FCM project",
    "by `SYNCBEAT_PUSH_PER_MINUTE`",
    Counted.REDIS,
    WithoutRedis.EIGHTH,
    "they wait",
    Bound(float("inf")),
)

CATALOG: tuple[Limit, ...] = (
    CALLS_BY_RATE,
    CALLS_AT_RATE_ZERO,
    MONTHLY_QUOTAS,
    CALLS_IN_FLIGHT,
    STREAMS_OF_USER,
    STREAMS_OF_DEVICE,
    REFRESHES_OF_SESSION,
    FORGED_REFRESHES,
    DEVICES_OF_USER,
    MEMBERS_OF_SCOPE,
    SCOPES_OF_USER,
    MOVES_OF_TOKEN,
    RELEASES_OF_TOKEN,
    SHOWN_A_DAY,
    WAKES_OF_ANDROID,
    WAKES_OF_IOS,
    SENDS_OF_PROJECT,
)
