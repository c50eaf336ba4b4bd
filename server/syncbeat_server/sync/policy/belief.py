"""Estimates how often a scope changes, now and next, by a Bayesian filter of its commit instants. Pure.

A scope is hot or cold, and changes as a Poisson process whose rate depends on that: a Markov-modulated Poisson process
with two states. The filter is exact for given rates (Rydén, "Parameter estimation for Markov modulated Poisson
processes", 1994, gives the transition matrices); the rates are learned on the way, as posterior means of gamma
distributions from soft counts of changes and time while hot and while cold. Times are seconds since 1970.
"""

from __future__ import annotations

from math import exp, log, sqrt
from typing import NamedTuple

from syncbeat_server.sync.model import Belief
from syncbeat_server.sync.policy.scope_prior import Prior

MEMORY_S = 7 * 86_400.0
"""The age at which an observation of a scope's rates counts for 1/e."""

_MIN_CONTRAST = 2.0  # of the hot to the cold rate, or the two states would trade places
_TINY = 1e-300


class Outlook(NamedTuple):
    """Predicts the change rate from now on: `level + swing * exp(-fade_per_s * s)` changes a second in `s` seconds."""

    level: float
    swing: float
    fade_per_s: float

    @property
    def rate(self) -> float:
        """Return the expected changes a second now."""
        return self.level + self.swing


def rates(belief: Belief, prior: Prior) -> tuple[float, float]:
    """Return the change rates while hot and while cold, a second."""
    return _rates(belief[1], belief[2], belief[3], belief[4], prior)


def after_silence(belief: Belief, prior: Prior, now: float) -> Belief:
    """Return the belief after silence until `now`: one step, however long. Time that goes back changes nothing."""
    elapsed = now - belief.at
    return Belief(*_silent(belief, prior, elapsed), now) if elapsed > 0.0 else belief


# Each hint computes these for each scope (`hint_vs_echo`): they return plain tuples, as a NamedTuple would add a
# tenth to the cost, and compare themselves, as calls of `min` and `max` would add another.
def _rates(hot_count: float, hot_s: float, cold_count: float, cold_s: float, prior: Prior) -> tuple[float, float]:
    _, _, usual_hot, hot_shape, usual_cold, cold_shape = prior
    cold = (cold_count + cold_shape) / (cold_s + cold_shape / usual_cold)
    # A scope that is busier than others when cold is assumed to be so by half, in the logarithm, when hot.
    hot = (hot_count + hot_shape) / (hot_s + hot_shape / (usual_hot * sqrt(cold / usual_cold)))
    least = _MIN_CONTRAST * cold
    if hot < least:
        hot = least
    return hot, cold


def _silent(belief: Belief, prior: Prior, elapsed: float) -> tuple[float, float, float, float, float]:
    """Return all fields of the belief but its time, after silence.

    The transition matrix of silence is exp(Q t) of the generator less the rates. Both its eigenvalues' exponentials
    share a factor that cancels in P(hot), so that nothing under- or overflows. The seconds spent hot follow exactly
    from the likelihood of the silence: -ln P(silence) is the integral of the expected rate.
    """
    hot, hot_count, hot_s, cold_count, cold_s, _ = belief
    start, end = prior[0], prior[1]
    hot_rate, cold_rate = _rates(hot_count, hot_s, cold_count, cold_s, prior)
    half = (start + cold_rate - end - hot_rate) * 0.5
    root = sqrt(half * half + start * end)
    faded = exp(-2.0 * root * elapsed)
    even, odd = (1.0 + faded) * 0.5, (1.0 - faded) / (2.0 * root)
    cold = 1.0 - hot
    hot_now = even * hot + odd * (half * hot + start * cold)
    likelihood = hot_now + even * cold + odd * (end * hot - half * cold)
    if likelihood < _TINY:
        likelihood = _TINY
    surprise = ((start + end + hot_rate + cold_rate) * 0.5 - root) * elapsed - log(likelihood)
    share = (surprise / elapsed - cold_rate) / (hot_rate - cold_rate)
    if share < 0.0:
        share = 0.0
    elif share > 1.0:
        share = 1.0
    hot_now /= likelihood
    if hot_now < 0.0:
        hot_now = 0.0
    elif hot_now > 1.0:
        hot_now = 1.0
    kept = exp(-elapsed / MEMORY_S)
    gained = MEMORY_S * (1.0 - kept)
    return (
        hot_now,
        hot_count * kept,
        hot_s * kept + share * gained,
        cold_count * kept,
        cold_s * kept + (1.0 - share) * gained,
    )


def after_change(belief: Belief, prior: Prior, now: float) -> Belief:
    """Return the belief after a commit at `now`. However many rows it wrote, it is one change."""
    before = after_silence(belief, prior, now)
    hot_rate, cold_rate = rates(before, prior)
    hot = before.hot * hot_rate
    hot /= hot + (1.0 - before.hot) * cold_rate
    return before._replace(hot=hot, hot_count=before.hot_count + hot, cold_count=before.cold_count + 1.0 - hot)


def after_evidence(belief: Belief, likelihood_ratio: float) -> Belief:
    """Return the belief after an observation with this ratio of its likelihoods in a hot and in a cold scope."""
    hot = belief.hot * likelihood_ratio
    return belief._replace(hot=hot / (hot + 1.0 - belief.hot))


def outlook(belief: Belief, prior: Prior, now: float) -> Outlook:
    """Return the expected change rate from `now` on, if the scope has stayed silent until then."""
    return Outlook(*expected(belief, prior, now), prior.start_per_s + prior.end_per_s)


def expected(belief: Belief, prior: Prior, now: float) -> tuple[float, float]:
    """Return the level and the swing of the outlook from `now` on."""
    elapsed = now - belief[5]
    hot, hot_count, hot_s, cold_count, cold_s = _silent(belief, prior, elapsed) if elapsed > 0.0 else belief[:5]
    hot_rate, cold_rate = _rates(hot_count, hot_s, cold_count, cold_s, prior)
    start = prior[0]
    usually = start / (start + prior[1])
    between = hot_rate - cold_rate
    return cold_rate + between * usually, between * (hot - usually)
