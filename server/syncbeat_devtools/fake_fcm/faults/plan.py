"""Scripted faults: what goes wrong, for which receiver, and how often.

A registration token can ask for its own fault by its text, `fault:KIND[+NUMBER[d]]:TIMES[:NAME]`:

- KIND is a value of `FaultKind`; TIMES is a count, after which sends to this token succeed, or `*` for ever;
- NUMBER is the delay of `slow` in milliseconds, else the seconds of a Retry-After header, written as an HTTP-date
  with `d`;
- NAME makes it a token of its own: `fault:503:2:phone-1` fails twice, `fault:quota+30d:*:phone-2` always.
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

EVERYWHERE = "*"
TEXT_PREFIX = "fault:"
_TEXT = re.compile(r"fault:(?P<kind>[a-z0-9\-]+)(\+(?P<arg>\d{1,9})(?P<date>d)?)?:(?P<times>\d{1,9}|\*)(:.*)?")
_MAX_SCRIPTED = 10_000
_MAX_SECONDS = 999_999_999
_MAX_DELAY_MS = 600_000
_MAX_COUNTED_TEXTS = 100_000


class FaultKind(StrEnum):
    """What goes wrong."""

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
        kind: what goes wrong.
        times: to how many requests it applies, after which it is over; None is for ever.
        retry_after_s: seconds named in a Retry-After header, for the kinds that answer; None sends none.
        retry_after_as_date: write Retry-After as an HTTP-date instead of seconds.
        delay_ms: for SLOW, how long to wait before accepting, in milliseconds; at most ten minutes.

    Raises:
        ValueError: a number is out of range.
    """

    kind: FaultKind
    times: int | None = 1
    retry_after_s: int | None = None
    retry_after_as_date: bool = False
    delay_ms: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be played."""
        if self.times is not None and self.times < 1:
            raise ValueError("times must be positive, or null for ever")
        if self.retry_after_s is not None and not 0 <= self.retry_after_s <= _MAX_SECONDS:
            raise ValueError(f"retry_after_s must be from 0 to {_MAX_SECONDS}")
        if not 0 <= self.delay_ms <= _MAX_DELAY_MS:
            raise ValueError(f"delay_ms must be from 0 to {_MAX_DELAY_MS}")

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The Retry-After header, when there is to be one."""
        if self.retry_after_s is None:
            return ()
        if self.retry_after_as_date:
            return ((b"retry-after", formatdate(time.time() + self.retry_after_s, usegmt=True).encode()),)
        return ((b"retry-after", b"%d" % self.retry_after_s),)


class UnreadableFault(ValueError):
    """A registration token begins with `fault:` and does not follow the grammar."""


@lru_cache(maxsize=4096)
def fault_in_text(token: str) -> Fault:
    """The fault that a registration token asks for by its text.

    Raises:
        UnreadableFault: it does not follow the grammar.
    """
    match = _TEXT.fullmatch(token)
    if match is None:
        raise UnreadableFault(f"fake-fcm: cannot read {token!r}: fault:KIND[+NUMBER[d]]:TIMES[:NAME]")
    times = None if match["times"] == "*" else int(match["times"])
    number = None if match["arg"] is None else int(match["arg"])
    try:
        kind = FaultKind(match["kind"])
        if kind is FaultKind.SLOW:
            return Fault(kind, times, delay_ms=number or 0)
        return Fault(kind, times, retry_after_s=number, retry_after_as_date=match["date"] is not None)
    except ValueError as error:
        raise UnreadableFault(f"fake-fcm: cannot read {token!r}: {error}") from error


@dataclass
class _Everywhere:
    fault: Fault
    share: float
    draws: random.Random
    left: int | None


class FaultPlan:
    """The faults still to come."""

    def __init__(self) -> None:
        self._scripted: dict[str, deque[tuple[Fault, int | None]]] = {}
        self._everywhere: list[_Everywhere] = []
        self._applied_texts: dict[str, int] = {}
        self.applied: Counter[FaultKind] = Counter()

    def script(self, target: str, fault: Fault, *, share: float = 1.0, seed: int = 0) -> None:
        """Add a fault for one receiver, after those it has already, or with the target `*` for all of them.

        `share`, for `*` only, is the probability with which a request is hit; `seed` makes the draws repeatable.

        Raises:
            ValueError: the share is out of range, or too many faults are scripted.
        """
        if not 0 < share <= 1:
            raise ValueError("share must be above 0 and at most 1")
        if len(self._scripted) + len(self._everywhere) >= _MAX_SCRIPTED:
            raise ValueError(f"more than {_MAX_SCRIPTED} receivers have faults")
        if target == EVERYWHERE:
            self._everywhere.append(_Everywhere(fault, share, random.Random(seed), fault.times))
            return
        if share != 1.0:
            raise ValueError("share is for the target * only")
        queue = self._scripted.setdefault(target, deque())
        if len(queue) >= _MAX_SCRIPTED:
            raise ValueError(f"more than {_MAX_SCRIPTED} faults for one receiver")
        queue.append((fault, fault.times))

    def clear(self, target: str | None = None) -> None:
        """Drop what was scripted, for one target or altogether. Faults asked for by text stay."""
        if target is None or target == EVERYWHERE:
            self._everywhere.clear()
        if target is None:
            self._scripted.clear()
        else:
            self._scripted.pop(target, None)

    def reset(self) -> None:
        """Forget everything, also how often faults by text were applied."""
        self.clear()
        self._applied_texts.clear()
        self.applied.clear()

    def take(self, target: str) -> Fault | None:
        """The fault for this request, if any: a scripted one first, then the text's, then one for everybody.

        Raises:
            UnreadableFault: the target begins with `fault:` and does not follow the grammar.
        """
        fault = self.take_scripted(target) if self._scripted else None
        if fault is None and target.startswith(TEXT_PREFIX):
            fault = self._take_text(target)
        if fault is None and self._everywhere:
            fault = self._take_everywhere()
        return fault

    def take_scripted(self, target: str) -> Fault | None:
        """The next fault scripted for this very target."""
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

    def _take_text(self, token: str) -> Fault | None:
        fault = fault_in_text(token)
        if fault.times is not None:
            applied = self._applied_texts.get(token, 0)
            if applied >= fault.times:
                return None
            if applied == 0 and len(self._applied_texts) >= _MAX_COUNTED_TEXTS:
                del self._applied_texts[next(iter(self._applied_texts))]
            self._applied_texts[token] = applied + 1
        self.applied[fault.kind] += 1
        return fault

    def _take_everywhere(self) -> Fault | None:
        for entry in self._everywhere:
            if entry.draws.random() < entry.share:
                if entry.left is not None:
                    entry.left -= 1
                    if entry.left == 0:
                        self._everywhere.remove(entry)
                self.applied[entry.fault.kind] += 1
                return entry.fault
        return None
