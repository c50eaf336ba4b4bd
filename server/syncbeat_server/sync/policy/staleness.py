"""Estimates the staleness of changes that a device now receives. Pure.

The feed keeps the newest value of each key, so of several changes since a device's last poll only the newest's instant
is known. The others fell between the last poll and that one, and given their number, the instants of a Poisson process
are spread evenly over that span: the expected age of each is that of its middle. One change is exact. Nothing is taken
from the believed rate, so that a policy that misjudges rates cannot misjudge its own staleness.
"""

from __future__ import annotations

from typing import NamedTuple

AWAY_AFTER = 1.5
"""A device that asks later than so many times its interval was away, which the policy is not responsible for."""
AWAY_GRACE_S = 5.0
"""... and so many seconds more."""


class Staleness(NamedTuple):
    """Sums, in expectation, over the changes that a device received for the first time."""

    changes: float
    stale_s: float
    late: float


NOTHING = Staleness(0.0, 0.0, 0.0)


def is_away(asked_s: float, told_s: float) -> bool:
    """Return True if a device that polls `asked_s` after its last poll, which gave the interval `told_s`, was away."""
    return asked_s > AWAY_AFTER * told_s + AWAY_GRACE_S


def staleness_of_poll(now: float, last_poll: float, newest_at: float, unseen: int, late_s: float) -> Staleness:
    """Return the staleness of `unseen` changes of a scope that a poll at `now` finds, the newest of `newest_at`.

    They came after `last_poll`. All times are unix seconds. Clocks that disagree cause no negative delay: a change from
    the future has none.
    """
    if unseen <= 0:
        return NOTHING
    newest_s = max(0.0, now - newest_at)
    oldest_s = max(newest_s, now - last_poll)
    others = unseen - 1
    stale_s = newest_s + others * (newest_s + oldest_s) / 2.0
    if newest_s > late_s:
        late = float(unseen)
    elif oldest_s > late_s:
        late = others * (oldest_s - late_s) / (oldest_s - newest_s)
    else:
        late = 0.0
    return Staleness(float(unseen), stale_s, late)


def staleness_of_delivery(now: float, changed_at: float, late_s: float) -> Staleness:
    """Return the staleness of one change that a stream delivers, whose instant is known."""
    stale_s = max(0.0, now - changed_at)
    return Staleness(1.0, stale_s, float(stale_s > late_s))
