"""What an app's hints are decided by, beside what is known of the device. Pure."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.defaults import POLL_CAP_IN_TARGETS, POLL_FLOOR_S, TARGET_STALENESS_S, SchedulingPolicy
from syncbeat_server.sync.policy.belief import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.policy.interval import Bounds, Price


class Tuning(NamedTuple):
    """The app's target and bounds from its settings, and what was learned: the prior, the price that meets the target.

    `late_s` is when a change counts as late; `app_misses` the share of changes that devices which pushes reach do not
    fetch after all, and `push_misses` the share of single pushes that they do not answer; `pushing` is False while the
    app's pushes do not get through.
    """

    policy: SchedulingPolicy = SchedulingPolicy.ADAPTIVE
    target: str = f"a mean staleness of {TARGET_STALENESS_S:g} s"
    bounds: Bounds = Bounds(POLL_FLOOR_S, POLL_CAP_IN_TARGETS * TARGET_STALENESS_S)
    prior: Prior = DEFAULT_PRIOR
    price: Price = Price(3.2)
    late_s: float = 30.0
    app_misses: float = 0.02
    push_misses: float = 0.05
    pushing: bool = True


DEFAULT_TUNING = Tuning()
