"""How stale was what a device now learns? Pure.

The feed keeps the newest value of each key, so of several changes since a device's last poll only the newest's instant
is known. The others fell between the last poll and that one, and given how many they are, the instants of a Poisson
process are spread evenly over that span: each is as old as its middle, in expectation. One change is exact. Nothing is
taken from the believed rate, so that a policy that misjudges rates cannot misjudge its own staleness.
"""

from __future__ import annotations

from typing import NamedTuple

AWAY_AFTER = 1.5
"""A device that asks later than so many times the interval it was told was away: that is not the policy's doing."""
AWAY_GRACE_S = 5.0
"""... and so many seconds more."""


class Met(NamedTuple):
    """What one poll met: expected sums over the changes it showed for the first time."""

    changes: float
    stale_s: float
    late: float


NOTHING = Met(0.0, 0.0, 0.0)


def is_away(asked_s: float, told_s: float) -> bool:
    """Whether a device that asks `asked_s` after its last poll, where it was told `told_s`, was away between them."""
    return asked_s > AWAY_AFTER * told_s + AWAY_GRACE_S


def met_by_poll(now: float, last_poll: float, newest_at: float, unseen: int, late_s: float) -> Met:
    """What a poll at `now` met that shows `unseen` changes of a scope since `last_poll`, the newest of `newest_at`.

    All times are unix seconds. Clocks that disagree make no negative delay: what is newer than now has none.
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
    return Met(float(unseen), stale_s, late)


def met_on_stream(now: float, changed_at: float, late_s: float) -> Met:
    """What a delivery on a stream met: one change, whose instant is known."""
    stale_s = max(0.0, now - changed_at)
    return Met(1.0, stale_s, float(stale_s > late_s))
