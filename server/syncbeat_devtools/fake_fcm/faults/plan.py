"""Scripted faults: their kind, their target, and how often they apply.

A registration token can request its own fault by its text, `fault:KIND[+NUMBER[d]]:TIMES[:NAME]`:

- KIND is a value of `FaultKind`; TIMES is a count, after which sends to this token succeed, or `*` for ever;
- NUMBER is the delay of `slow` in milliseconds, otherwise the seconds of a Retry-After header, written as an
  HTTP-date with `d`;
- NAME makes the token unique: `fault:503:2:phone-1` fails twice, `fault:quota+30d:*:phone-2` always.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter, deque
from dataclasses import dataclass
from email.utils import formatdate
from enum import StrEnum
from functools import lru_cache

ALL_TARGETS = "*"
FAULT_TOKEN_PREFIX = "fault:"
_TEXT = re.compile(r"fault:(?P<kind>[a-z0-9\-]+)(\+(?P<arg>\d{1,9})(?P<date>d)?)?:(?P<times>\d{1,9}|\*)(:.*)?")
_MAX_SCRIPTED = 10_000
_MAX_SECONDS = 999_999_999
_MAX_DELAY_MS = 600_000
_MAX_COUNTED_TOKENS = 100_000


class FaultKind(StrEnum):
    """The kinds of faults."""

    UNREGISTERED = "unregistered"
    NOT_FOUND = "404"
    SENDER_ID_MISMATCH = "sender-mismatch"
    BAD_TOKEN = "bad-token"
    BAD_TOKEN_FIELD = "bad-token-field"
    BAD_PAYLOAD = "bad-payload"
    QUOTA_EXCEEDED = "quota"
    THIRD_PARTY_AUTH = "third-party-auth"
    UNAUTHENTICATED = "401"
    INTERNAL = "500"
    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    NOT_JSON = "not-json"
    SLOW = "slow"
    ACCEPTED_THEN_503 = "accepted-503"
    ACCEPTED_THEN_RESET = "accepted-reset"
    RESET = "reset"
    HANG = "hang"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: the kind.
        times: the number of requests it applies to; None: all.
        retry_after_s: seconds of the Retry-After header, for kinds with a response; None: no header.
        retry_after_as_date: write Retry-After as an HTTP-date instead of seconds.
        delay_ms: for SLOW, the delay before the request is accepted, in milliseconds; at most ten minutes.

    Raises:
        ValueError: a number is out of range.
    """

    kind: FaultKind
    times: int | None = 1
    retry_after_s: int | None = None
    retry_after_as_date: bool = False
    delay_ms: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if self.times is not None and self.times < 1:
            raise ValueError("times must be positive, or null for ever")
        if self.retry_after_s is not None and not 0 <= self.retry_after_s <= _MAX_SECONDS:
            raise ValueError(f"retry_after_s must be from 0 to {_MAX_SECONDS}")
        if not 0 <= self.delay_ms <= _MAX_DELAY_MS:
            raise ValueError(f"delay_ms must be from 0 to {_MAX_DELAY_MS}")

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the Retry-After header, if the fault has one."""
        if self.retry_after_s is None:
            return ()
        if self.retry_after_as_date:
            return ((b"retry-after", formatdate(time.time() + self.retry_after_s, usegmt=True).encode()),)
        return ((b"retry-after", b"%d" % self.retry_after_s),)


class MalformedFaultToken(ValueError):
    """A registration token that begins with `fault:` but does not follow the grammar."""


@lru_cache(maxsize=4096)
def parse_fault_token(token: str) -> Fault:
    """Return the fault that a registration token requests by its text.

    Raises:
        MalformedFaultToken: it does not follow the grammar.
    """
    match = _TEXT.fullmatch(token)
    if match is None:
        raise MalformedFaultToken(f"fake-fcm: cannot read {token!r}: fault:KIND[+NUMBER[d]]:TIMES[:NAME]")
    times = None if match["times"] == "*" else int(match["times"])
    number = None if match["arg"] is None else int(match["arg"])
    try:
        kind = FaultKind(match["kind"])
        if kind is FaultKind.SLOW:
            return Fault(kind, times, delay_ms=number or 0)
        return Fault(kind, times, retry_after_s=number, retry_after_as_date=match["date"] is not None)
    except ValueError as error:
        raise MalformedFaultToken(f"fake-fcm: cannot read {token!r}: {error}") from error


@dataclass
class _GlobalFault:
    fault: Fault
    share: float
    draws: random.Random
    left: int | None


class FaultPlan:
    """The faults that are still to be applied."""

    def __init__(self) -> None:
        self._scripted: dict[str, deque[tuple[Fault, int | None]]] = {}
        self._global: list[_GlobalFault] = []
        self._applied_by_token: dict[str, int] = {}
        self.applied: Counter[FaultKind] = Counter()

    def script(self, target: str, fault: Fault, *, share: float = 1.0, seed: int = 0) -> None:
        """Add a fault for one target, after those it has already, or for all targets with `*`.

        `share`, for `*` only, is the probability that the fault applies to a request; `seed` makes the draws
        repeatable.

        Raises:
            ValueError: the share is out of range, or too many faults are scripted.
        """
        if not 0 < share <= 1:
            raise ValueError("share must be above 0 and at most 1")
        if len(self._scripted) + len(self._global) >= _MAX_SCRIPTED:
            raise ValueError(f"more than {_MAX_SCRIPTED} receivers have faults")
        if target == ALL_TARGETS:
            self._global.append(_GlobalFault(fault, share, random.Random(seed), fault.times))
            return
        if share != 1.0:
            raise ValueError("share is for the target * only")
        queue = self._scripted.setdefault(target, deque())
        if len(queue) >= _MAX_SCRIPTED:
            raise ValueError(f"more than {_MAX_SCRIPTED} faults for one receiver")
        queue.append((fault, fault.times))

    def clear(self, target: str | None = None) -> None:
        """Drop the scripted faults of one target, or all. Faults requested by a token's text stay."""
        if target is None or target == ALL_TARGETS:
            self._global.clear()
        if target is None:
            self._scripted.clear()
        else:
            self._scripted.pop(target, None)

    def reset(self) -> None:
        """Drop everything, including the counts of faults applied by a token's text."""
        self.clear()
        self._applied_by_token.clear()
        self.applied.clear()

    def next_fault(self, target: str) -> Fault | None:
        """Return the fault for this request, or None: a scripted one first, then the token's own, then a global one.

        Raises:
            MalformedFaultToken: the target begins with `fault:` but does not follow the grammar.
        """
        fault = self.next_scripted(target) if self._scripted else None
        if fault is None and target.startswith(FAULT_TOKEN_PREFIX):
            fault = self._next_by_token(target)
        if fault is None and self._global:
            fault = self._next_global()
        return fault

    def next_scripted(self, target: str) -> Fault | None:
        """Return the next fault that is scripted for exactly this target."""
        queue = self._scripted.get(target)
        if queue is None:
            return None
        fault, left = queue.popleft()
        if left is None or left > 1:
            queue.appendleft((fault, None if left is None else left - 1))
        elif not queue:
            del self._scripted[target]
        self.applied[fault.kind] += 1
        return fault

    def _next_by_token(self, token: str) -> Fault | None:
        fault = parse_fault_token(token)
        if fault.times is not None:
            applied = self._applied_by_token.get(token, 0)
            if applied >= fault.times:
                return None
            if applied == 0 and len(self._applied_by_token) >= _MAX_COUNTED_TOKENS:
                del self._applied_by_token[next(iter(self._applied_by_token))]
            self._applied_by_token[token] = applied + 1
        self.applied[fault.kind] += 1
        return fault

    def _next_global(self) -> Fault | None:
        for entry in self._global:
            if entry.draws.random() < entry.share:
                if entry.left is not None:
                    entry.left -= 1
                    if entry.left == 0:
                        self._global.remove(entry)
                self.applied[entry.fault.kind] += 1
                return entry.fault
        return None
