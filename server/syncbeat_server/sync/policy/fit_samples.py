"""Defines the input and the result of fitting a prior; apart from `prior_fit`, which needs numpy. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from syncbeat_server.sync.policy.rhythm import NO_EVIDENCE, WeekEvidence
from syncbeat_server.sync.policy.scope_prior import Prior

WANTED_SCOPES, MAX_SCOPES = 300.0, 1_000
"""The number of scopes that an app's samples are to hold, and the most whose histories are fitted."""


class History(NamedTuple):
    """Holds the changes of a scope between two moments: unix seconds, ascending."""

    start_s: float
    end_s: float
    changes: Sequence[float]


class Fitted(NamedTuple):
    """Holds a prior, the numbers of scopes and changes that it was fitted to, and the evidence of the app's rhythm."""

    prior: Prior
    scopes: int
    changes: int
    week: WeekEvidence = NO_EVIDENCE


class Known(NamedTuple):
    """Holds what a fit begins with: the prior and the week's evidence so far."""

    prior: Prior
    week: WeekEvidence = NO_EVIDENCE
