"""Plans a load: which operation is due when, from a seed alone, so that a run resumes in the middle. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

_MASK = (1 << 64) - 1


class Operation(StrEnum):
    """Names the kinds of calls that a run makes and measures."""

    POLL = "poll"
    """GetHint of a device whose last hint says so."""
    LIST = "list"
    """ListChanges of a device whose poll told of news; not planned, it follows from polls."""
    PUBLISH = "publish"
    """PublishChanges of a backend."""
    REFRESH = "refresh"
    """RefreshSession of a user."""
    EVENT = "event"
    """IngestEvent with a change as its effect."""
    PUSH = "push"
    """SendNotification to a device."""
    STREAM = "stream"
    """WatchHints, measured up to its first message."""


PLANNED = (Operation.PUBLISH, Operation.REFRESH, Operation.EVENT, Operation.PUSH, Operation.STREAM)
"""The operations that come by the plan; polls come by the hints of devices."""

DEFAULT_SHARES: Mapping[Operation, float] = {
    Operation.POLL: 70.0,
    Operation.PUBLISH: 15.0,
    Operation.EVENT: 5.0,
    Operation.PUSH: 5.0,
    Operation.REFRESH: 3.0,
    Operation.STREAM: 2.0,
}
POLL_INTERVAL_S = 10.0
"""The interval, in seconds, by which a share of polls is turned into a number of devices: about what hints come to
where somebody looks, no push reaches the device, and its scope changes each half minute."""


class Arrival(NamedTuple):
    """One planned call: its moment in seconds of the run, its kind, and 64 bits of chance to choose by."""

    at_s: float
    operation: Operation
    draw: int


@dataclass(frozen=True)
class Plan:
    """The calls of a run, evenly spaced at `per_second`, whatever becomes of those before (an open loop).

    The operation of each is drawn by its number and the seed, in proportion to `shares`.
    """

    per_second: float
    shares: tuple[tuple[Operation, float], ...]
    seed: int

    def arrival(self, number: int) -> Arrival:
        """Return the call of a number, from 0 on."""
        mixed = _mix((self.seed << 32) + number)
        point = (mixed >> 11) / (1 << 53) * sum(share for _, share in self.shares)
        chosen = self.shares[-1][0]
        for operation, share in self.shares:
            if point < share:
                chosen = operation
                break
            point -= share
        return Arrival(number / self.per_second, chosen, _mix(mixed))

    def first_after(self, elapsed_s: float) -> int:
        """Return the number of the first call that is due at or after a moment of the run."""
        return max(0, -int(-elapsed_s * self.per_second // 1)) if self.per_second > 0 else 0


def make_plan(rate: float, shares: Mapping[Operation, float], seed: int) -> Plan:
    """Return the plan of what a rate leaves beside the polls."""
    total = sum(shares.values())
    planned = tuple((operation, shares[operation]) for operation in PLANNED if shares.get(operation, 0.0) > 0)
    return Plan(rate * sum(share for _, share in planned) / total, planned, seed)


def fleet_size(rate: float, shares: Mapping[Operation, float]) -> int:
    """Return how many devices poll about as often as the share of polls asks for, one at least."""
    return max(1, round(rate * shares.get(Operation.POLL, 0.0) / sum(shares.values()) * POLL_INTERVAL_S))


def _mix(value: int) -> int:
    """Return 64 well-mixed bits of a number (SplitMix64: Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
