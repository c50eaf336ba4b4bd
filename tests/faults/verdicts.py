"""Holds what was seen in a cell against its promise. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tests.faults.matrix import During, Promise

SLOW_S = 5.0
"""A call that takes longer after the end of a fault shows that it is not over for everybody."""

SHORT_PAUSE_S = 1.0
"""Pauses of the machine up to this are not told."""


class Ended(StrEnum):
    """The ways in which a call ends."""

    ANSWERED = "answered"
    REFUSED = "refused with RetryInfo"
    LATE = "DEADLINE_EXCEEDED"
    FAILED = "failed"


_ALLOWED = {
    During.ANSWERS: {Ended.ANSWERED},
    During.MAY_REFUSE: {Ended.ANSWERED, Ended.REFUSED},
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One call. `steady`: its caller is known, and is to be answered even where others may be refused."""

    began_s: float
    ended_s: float
    ended: Ended
    told: str = ""
    steady: bool = False


@dataclass(frozen=True, slots=True)
class Effect:
    """Outcome that an accepted call promises: promised at one moment, seen at another, or never."""

    promised_s: float
    seen_s: float | None


@dataclass
class Seen:
    """Everything that was seen of one call's kind under one fault."""

    began_s: float
    """The moment at which the fault began."""
    over_s: float
    """The moment at which the fault ended."""
    samples: list[Sample] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Promised effects that are not there, or are there twice."""
    paused_s: float = 0.0
    """The longest time for which the machine stood still: it is in every figure."""

    @property
    def recovered_s(self) -> float:
        """Seconds from the end of the fault to the end of the last call of after that which was not answered soon."""
        late = [
            one.ended_s - self.over_s
            for one in self.samples
            if one.began_s >= self.over_s and (one.ended is not Ended.ANSWERED or one.ended_s - one.began_s > SLOW_S)
        ]
        return max([0.0, *late])

    @property
    def caught_up_s(self) -> float:
        """Seconds from the end of the fault, or from a later promise, to the effect that was seen last."""
        waits = [
            one.seen_s - max(one.promised_s, self.over_s)
            for one in self.effects
            if one.seen_s is not None and one.seen_s > self.over_s
        ]
        return max([0.0, *waits])

    def figures(self) -> dict[str, object]:
        """Return what is recorded."""
        took = sorted(one.ended_s - one.began_s for one in self.samples)
        waits = [one.seen_s - one.promised_s for one in self.effects if one.seen_s is not None]
        told: dict[str, object] = {}
        if took:
            told = {
                **Counter(one.ended.value for one in self.samples),
                "p50_s": round(took[len(took) // 2], 3),
                "slowest_s": round(took[-1], 3),
                "recovered_s": round(self.recovered_s, 2),
            }
        if self.effects:
            told |= {
                "effects": len(self.effects),
                "latest_effect_s": round(max(waits, default=0.0), 2),
                "caught_up_s": round(self.caught_up_s, 2),
            }
        paused = {"machine_paused_s": round(self.paused_s, 1)} if self.paused_s > SHORT_PAUSE_S else {}
        return {**told, "lost": len(self.lost), **paused}


def broken(promise: Promise, seen: Seen) -> list[str]:
    """Return how a promise was broken; nothing if it was kept."""
    return [*seen.lost, *_calls(promise, seen), *_effects(promise, seen)]


def _calls(promise: Promise, seen: Seen) -> list[str]:
    found = []
    for one in seen.samples:
        allowed = _ALLOWED[During.ANSWERS if one.steady else promise.during]
        took_s, at_s = one.ended_s - one.began_s, one.began_s - seen.began_s
        if one.ended not in allowed:
            found.append(f"{one.ended} at {at_s:.1f} s: {one.told}")
        elif took_s > promise.within_s:
            found.append(f"took {took_s:.1f} s at {at_s:.1f} s: {one.ended} {one.told}")
    if seen.recovered_s > promise.recovered_s:
        found.append(f"recovered after {seen.recovered_s:.1f} s")
    return found


def _effects(promise: Promise, seen: Seen) -> list[str]:
    found = []
    for one in seen.effects:
        at_s = one.promised_s - seen.began_s
        if one.seen_s is None:
            found.append(f"never seen: promised at {at_s:.1f} s")
        elif promise.effect_s is not None and one.seen_s - one.promised_s > promise.effect_s:
            found.append(f"seen {one.seen_s - one.promised_s:.1f} s after it was promised at {at_s:.1f} s")
    if seen.caught_up_s > promise.recovered_s:
        found.append(f"caught up after {seen.caught_up_s:.1f} s")
    return found
