"""Defines the inputs of an app's hints, beside what is known of the device. Pure."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.defaults import POLL_CAP_IN_TARGETS, POLL_FLOOR_S, TARGET_STALENESS_S, SchedulingPolicy
from syncbeat_server.sync.policy.interval import Bounds, Price
from syncbeat_server.sync.policy.price_controller import DEFAULT_TARGET
from syncbeat_server.sync.policy.rhythm import NO_RHYTHM, Rhythm
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior


class Tuning(NamedTuple):
    """Holds the policy inputs of an app: the target and bounds from its settings, its learned prior, price
    and rhythm.

    `late_s` is the staleness from which a change counts as late; `app_misses` is the share of changes that devices
    reached by pushes do not fetch after all resends, `push_misses` the share of single pushes that they do not answer;
    `pushing` is False while the app's pushes do not get through.
    """

    policy: SchedulingPolicy = SchedulingPolicy.ADAPTIVE
    target: str = str(DEFAULT_TARGET)
    bounds: Bounds = Bounds(POLL_FLOOR_S, POLL_CAP_IN_TARGETS * TARGET_STALENESS_S)
    prior: Prior = DEFAULT_PRIOR
    price: Price = Price(3.2)
    late_s: float = 30.0
    app_misses: float = 0.02
    push_misses: float = 0.05
    pushing: bool = True
    rhythm: Rhythm = NO_RHYTHM


DEFAULT_TUNING = Tuning()
