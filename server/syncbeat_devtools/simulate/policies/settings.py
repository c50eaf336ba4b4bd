"""The policies that are compared, and the settings of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from syncbeat_devtools.simulate.fleet.push_channel import DEFAULT_CONDITIONS, PushConditions
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.interval import Bounds, Price
from syncbeat_server.sync.policy.rhythm import NO_RHYTHM, Rhythm
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR, Prior

DEFAULT_PRICE = 3.2
"""The price of a stale second in polls at a multiplier of 1, which gives about 15 s on the default fleet."""
POLL_COST = 1.0


class PolicyRow(StrEnum):
    """The policies that are compared, and the causal ceiling and the oracle, whose knowledge no policy can have."""

    FIXED = "fixed-30s"
    TIERS = "tier-table"
    BACKOFF = "backoff"
    EWMA = "sqrt-ewma"
    PULL = "adaptive-pull"
    HYBRID = "adaptive-hybrid"
    PRESENCE = "adaptive-pull+presence"
    CEILING = "known-parameters"
    CAPPED_CEILING = "known-parameters, within the same bounds"
    HYBRID_CEILING = "known-parameters-hybrid"
    ORACLE = "oracle"
    TUNED_EWMA = "ewma, tuned"
    AFTER_ACTIVITY = "fast after activity, tuned"
    HINDSIGHT = "rates of circumstances, in hindsight"
    BY_SCREEN = "fast in the foreground, tuned"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one run. `multiplier` is the solved variable: a price, a scale or a cap, depending on the policy."""

    multiplier: float
    bounds: Bounds = DEFAULT_TUNING.bounds
    prior: Prior = DEFAULT_PRIOR
    presence_lag_s: float = 30.0
    conditions: PushConditions = DEFAULT_CONDITIONS
    lateness_s: float = 0.0
    """The stale seconds that one late change is equivalent to."""
    app_misses: float = 0.02
    push_misses: float = 0.05
    rhythm: Rhythm = NO_RHYTHM
    presence_unseen: float = 0.2
    """The share of sessions that the server does not learn of, and of presence signals without a session."""

    def at(self, multiplier: float) -> Settings:
        """Return the settings with another multiplier."""
        return replace(self, multiplier=multiplier)

    @property
    def price(self) -> Price:
        """Return the price at this multiplier."""
        staleness = DEFAULT_PRICE / self.multiplier**2
        return Price(staleness, staleness * self.lateness_s)

    @property
    def tuning(self) -> Tuning:
        """Return the tuning by which the server decides a hint."""
        return Tuning(
            bounds=self.bounds,
            prior=self.prior,
            price=self.price,
            app_misses=self.app_misses,
            push_misses=self.push_misses,
            rhythm=self.rhythm,
        )
