"""What a prior is fitted to, and what comes of it; apart from `fit.py`, which needs numpy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.sync.policy.belief import Prior


class History(NamedTuple):
    """When a scope changed, between two moments: unix seconds, ascending."""

    start_s: float
    end_s: float
    changes: Sequence[float]


class Fitted(NamedTuple):
    """A prior, and from how much it was learned."""

    prior: Prior
    scopes: int
    changes: int
