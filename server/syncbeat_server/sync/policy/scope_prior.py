"""Defines the prior of an app's scopes, and the belief of a new scope that follows from it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from syncbeat_server.sync.model import Belief


class Prior(NamedTuple):
    """Holds what an app's scopes have in common, before one of them is known: rates in events a second.

    `start_per_s` is the rate at which a cold scope becomes hot, `end_per_s` the reverse; `hot_per_s` and `cold_per_s`
    are the mean change rates, and their shapes those of the gamma distributions around the means.
    """

    start_per_s: float
    end_per_s: float
    hot_per_s: float
    hot_shape: float
    cold_per_s: float
    cold_shape: float


DEFAULT_PRIOR = Prior(1 / (349 * 60), 1 / (11.8 * 60), 32 / 3600, 2.5, 0.79 / 3600, 0.85)
"""A couple's app: sessions of 12 minutes some four times a day, 20 changes an hour in them."""


def initial_belief(prior: Prior, now: float) -> Belief:
    """Return the belief of a scope before its first change."""
    return Belief(prior.start_per_s / (prior.start_per_s + prior.end_per_s), 0.0, 0.0, 0.0, 0.0, now)
