"""Defines what a run has to keep, and what a figure that misses it comes to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

from syncbeat_server.defaults import TARGET_STALENESS_S


class Verdict(IntEnum):
    """Names what a run comes to, as SloVerdict of the contract does; the worst is the greatest."""

    OK = 1
    WARN = 2
    ROLLBACK = 3


@dataclass(frozen=True)
class Objectives:
    """The thresholds of a run. Times in seconds, shares from 0 to 1."""

    availability: float = 0.999
    """The share of calls that do not fail by the server's fault."""
    hint_p95_s: float = 0.050
    p95_s: float = 0.200
    """The 95th percentile of each operation."""
    errors: float = 0.005
    """The share of calls that fail for whatever reason."""
    rollback_errors: float = 0.02
    """The share of failures in a window that takes a roll-out back."""
    push_accepted: float = 0.95
    """The share of eligible deliveries that the provider takes."""
    staleness_s: float = TARGET_STALENESS_S
    """The mean age of a change when a polling device hears of it."""
    rss_mib_per_hour: float = 1.0
    over_earlier: float = 1.25
    """The most that p95 and CPU of a call may be, in times of an earlier report's."""


def objective_names() -> tuple[str, ...]:
    """Return the names by which thresholds are set."""
    return tuple(one.name for one in fields(Objectives))


@dataclass(frozen=True)
class Trigger:
    """One figure that a verdict goes by, as SloTrigger of the contract; a threshold of None is none."""

    name: str
    value: float
    warn_threshold: float
    rollback_threshold: float | None = None
    unit: str = "ratio"

    @property
    def verdict(self) -> Verdict:
        """Return what this figure alone comes to."""
        if self.rollback_threshold is not None and self.value > self.rollback_threshold:
            return Verdict.ROLLBACK
        return Verdict.WARN if self.value > self.warn_threshold else Verdict.OK
