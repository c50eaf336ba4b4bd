"""Which policies there are, and what one is run with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from syncbeat_devtools.simulate.fleet.push_channel import DEFAULT_WAKING, Waking
from syncbeat_server.sync.policy import DEFAULT_TUNING
from syncbeat_server.sync.policy.belief import DEFAULT_PRIOR, Prior
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.interval import Bounds, Price

DEFAULT_PRICE = 3.2
"""The price of a stale second, in polls, at a multiplier of 1: about 15 s on the default fleet."""
POLL_COST = 1.0


class PolicyRow(StrEnum):
    """The policies that are compared, and two that know what no policy can: the causal ceiling and the oracle."""

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


@dataclass(frozen=True, slots=True)
class Settings:
    """What a policy is run with. `multiplier` is what is solved for: a price, a scale or a cap, by the policy."""

    multiplier: float
    bounds: Bounds = DEFAULT_TUNING.bounds
    prior: Prior = DEFAULT_PRIOR
    presence_lag_s: float = 30.0
    waking: Waking = DEFAULT_WAKING
    lateness_s: float = 0.0
    """How many stale seconds a change that is late is as bad as."""
    app_misses: float = 0.02
    push_misses: float = 0.05
    presence_unseen: float = 0.2
    """The share of sessions that the server does not hear of, and of hints of a session that there is none."""

    @property
    def price(self) -> Price:
        """The price that the multiplier stands for."""
        staleness = DEFAULT_PRICE / self.multiplier**2
        return Price(staleness, staleness * self.lateness_s)

    @property
    def tuning(self) -> Tuning:
        """What the server decides a hint by."""
        return Tuning(
            bounds=self.bounds,
            prior=self.prior,
            price=self.price,
            app_misses=self.app_misses,
            push_misses=self.push_misses,
        )
