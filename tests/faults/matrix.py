"""Declares what is promised while the network to one dependency fails: one cell for each dependency, fault and call.

docs/reference/fault-matrix.md is generated from this table and from the record of its last measurement.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from tests.support.tcp_relays import SLOW, Fault


class Dependency(StrEnum):
    """The dependencies, each behind a relay of its own."""

    POSTGRES = "PostgreSQL"
    REDIS = "Redis"
    FCM = "FCM"
    JWKS = "JWKS"
    WEBHOOK = "webhook"


class Call(StrEnum):
    """The kinds of work that go on meanwhile."""

    POLL = "poll"
    PUBLISH = "publish"
    PUSH = "push"
    STREAM = "stream"
    REFRESH = "refresh"


class During(StrEnum):
    """The answers that calls get while the fault lasts."""

    ANSWERS = "answered"
    MAY_REFUSE = "answered, or refused with RetryInfo"


@dataclass(frozen=True)
class Promise:
    """The promise of one cell.

    Attributes:
        during: The answers while the fault lasts, each within `within_s`. RetryInfo comes with UNAVAILABLE, and with
            RESOURCE_EXHAUSTED where what a lost connection left behind is in the way.
        recovered_s: Seconds from the end of the fault, from which on each call is answered and its effect seen.
        effect_s: Seconds from a call's acceptance in which its effect is seen even while the fault lasts: a change on
            a stream, a notification on a phone. None: it may wait for the end of the fault.
    """

    during: During
    within_s: float
    recovered_s: float = 15.0
    effect_s: float | None = None


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    dependency: Dependency
    fault: Fault
    call: Call

    def __str__(self) -> str:
        return f"{self.dependency}, {self.fault}, {self.call}"


CALL_S = 10.0
"""The deadline of each call: the default of clients and server."""
AT_ONCE_S = 5.0
"""The bound of calls that do not need what fails; a busy machine takes the most of it."""
LOOK_S = 15.0
"""The bound of effects that no wake-up tells of: streams look each 5 s, workers each second."""
BREAKER_S = 60.0
"""Seconds for which a provider that fails is not asked, unless a setting says otherwise."""
AFTER_BREAKER_S = 5.0
"""Seconds over which what waited for a provider comes back to it."""

_EFFECTS = (Call.PUSH, Call.STREAM)

KEPT: Mapping[Call, str] = MappingProxyType(
    {
        Call.POLL: "a device that was let in before is not sent away",
        Call.PUBLISH: "an acknowledged change is in the feed, once, also if it was repeated under its id",
        Call.PUSH: "an accepted notification is shown once by FCM; a webhook gets it, under one id however often",
        Call.STREAM: "each acknowledged change arrives, once, in the order of its scope",
        Call.REFRESH: "no session is lost: the last refresh token goes on",
    }
)
"""The effects that are never lost, in any cell of a call."""

USES: Mapping[Dependency, frozenset[Call]] = MappingProxyType(
    {
        Dependency.POSTGRES: frozenset(Call),
        Dependency.REDIS: frozenset(),  # each call goes on without it
        Dependency.FCM: frozenset({Call.PUSH}),
        Dependency.JWKS: frozenset({Call.POLL, Call.STREAM}),
        Dependency.WEBHOOK: frozenset({Call.PUSH}),
    }
)
"""The calls that need a dependency: those of a JWKS endpoint are of callers whose key is new."""

PROVIDERS = (Dependency.FCM, Dependency.WEBHOOK)


def promise_of(cell: Cell, breaker_s: float = BREAKER_S) -> Promise:
    """Return the promise of a cell, where providers rest for `breaker_s` after failures in a row."""
    effect_s = LOOK_S if cell.call in _EFFECTS else None
    if cell.call not in USES[cell.dependency]:
        return Promise(During.ANSWERS, AT_ONCE_S, effect_s=effect_s)
    if cell.fault in SLOW:
        return Promise(During.ANSWERS, CALL_S, effect_s=effect_s)
    if cell.dependency in PROVIDERS:  # accepting needs no provider
        return Promise(During.ANSWERS, AT_ONCE_S, recovered_s=breaker_s + AFTER_BREAKER_S)
    return Promise(During.MAY_REFUSE, CALL_S)


def cells() -> Iterator[Cell]:
    """Yield every cell."""
    for dependency in Dependency:
        for fault in Fault:
            for call in Call:
                yield Cell(dependency, fault, call)
