"""Fits the prior that explains how an app's scopes changed: maximum likelihood over a day of some of them. Pure.

A scope's hot and cold rates are log-normal among the scopes, on a 5 x 5 Gauss-Hermite grid; for each grid point the
filter of `belief.py` gives the likelihood of the scope's whole history (the product of its normalisers; Rydén,
"Parameter estimation for Markov modulated Poisson processes", 1994), and the grid is summed out. Six numbers are
searched for by the simplex method (`nelder_mead`). They are held together by a wide prior of their own, without which a
fleet that has no sessions would leave some of them undetermined.

Only the process that fits imports this module: numpy takes a tenth of a second and 20 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from syncbeat_server.sync.policy.fit_samples import Fitted, History
from syncbeat_server.sync.policy.scope_prior import Prior
from syncbeat_server.sync.tuning.nelder_mead import minimise

LEAST_SCOPES, LEAST_CHANGES, LEAST_SPAN_S = 20, 200, 3 * 3600.0
"""With less evidence than this the prior stays as it was."""

_MAX_CHANGES_PER_SCOPE = 400  # changes: a history may be cut off after a number of them without bias
_MAX_CHANGES = 20_000
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_EVALUATIONS, _EXACT, _FIRST_STEP = 220, 0.05, 0.5
_MIN_SD, _MAX_SD = 0.15, 2.5
_MIN_SHAPE, _MAX_SHAPE = 0.2, 50.0
_SLOWEST, _FASTEST = 1 / (30 * 86_400.0), 1.0  # changes a second
_STARTS = (1 / (30 * 86_400.0), 1 / 300.0)  # cold to hot, a second
_ENDS = (1 / 86_400.0, 1 / 60.0)  # hot to cold
_MIN_CONTRAST = 2.0
_TINY = 1e-300

Array = NDArray[np.float64]

# mean ln hot, ln of its sd, mean ln cold, ln of its sd, ln start, ln end: their means (of rates relative to the mean
# rate of all scopes) and standard deviations in the wide prior
_EXPECTED = np.array(
    [math.log(10), math.log(0.7), math.log(0.4), math.log(0.9), math.log(1 / 21_600), math.log(1 / 720)]
)
_WITHIN = np.array([2.0, 0.7, 2.0, 0.7, 2.0, 2.0])


def fit(histories: Sequence[History], before: Prior, out_of_time: Callable[[], bool] = lambda: False) -> Fitted | None:
    """Return the prior that makes these histories likeliest, or None when they are too few to tell.

    Scopes without a change count too: they tell the rates of quiet ones. The search starts from `before` and from the
    fleet's mean rate, and ends with the better of the two, or with the best so far as soon as it is out of time.
    """
    span_s = max((history.end_s - history.start_s for history in histories), default=0.0)
    changes = sum(len(history.changes) for history in histories)
    if len(histories) < LEAST_SCOPES or changes < LEAST_CHANGES or span_s < LEAST_SPAN_S:
        return None
    likelihood = _Likelihood(histories)
    expected = _EXPECTED + likelihood.log_rate * np.array([1, 0, 1, 0, 0, 0])

    def unlikeliness(point: Array) -> float:
        return float(np.sum(((point - expected) / _WITHIN) ** 2) / 2.0) - likelihood.of(point)

    starts = (_point(before), expected)
    found = [minimise(unlikeliness, start, _FIRST_STEP, _EXACT, _EVALUATIONS, out_of_time) for start in starts]
    best = min(found, key=lambda one: one[1])[0]
    return Fitted(_prior(best), likelihood.scopes, likelihood.changes)


class _Likelihood:
    """Computes likelihoods of histories, whose k-th gaps are laid out together, the longest history first."""

    def __init__(self, histories: Sequence[History]) -> None:
        gaps: list[Array] = []
        self.changes = 0
        for history in histories:
            if self.changes >= _MAX_CHANGES:
                break
            gaps.append(_gaps(history))
            self.changes += len(gaps[-1]) - 1
        gaps.sort(key=len, reverse=True)
        lengths = np.array([len(one) for one in gaps])
        # At step k the first `active[k]` scopes have a gap; all but the last of a scope's end with a change.
        self._active = [int(np.sum(lengths > k)) for k in range(int(lengths[0]))] + [0]
        self._gaps = [np.array([one[k] for one in gaps[:most]])[:, None] for k, most in enumerate(self._active[:-1])]
        self._exposure = np.array([one.sum() for one in gaps])[:, None]
        self.scopes = len(gaps)
        self.log_rate = math.log(max(1, self.changes) / max(1.0, float(self._exposure.sum())))

    def of(self, point: Array) -> float:
        """Return the log likelihood of all histories."""
        hot_mean, hot_sd, cold_mean, cold_sd = point[0], _sd(point[1]), point[2], _sd(point[3])
        start, end = math.exp(point[4]), math.exp(point[5])
        hot = np.repeat(np.exp(hot_mean + hot_sd * _NODES), len(_NODES))
        cold = np.tile(np.exp(cold_mean + cold_sd * _NODES), len(_NODES))
        weight = np.outer(_WEIGHTS, _WEIGHTS).ravel() / _WEIGHTS.sum() ** 2
        half = (start + cold - end - hot) / 2.0
        root = np.sqrt(half * half + start * end)
        # exp(Q t) of belief.after_silence, as 1 - (1 - e^{-2 root t}) * (a constant matrix).
        stay_hot, stay_cold = 0.5 - half / (2 * root), 0.5 + half / (2 * root)
        to_hot, to_cold = start / (2 * root), end / (2 * root)
        belief = np.full((self.scopes, len(hot)), start / (start + end))
        logs = np.zeros_like(belief)
        for k, gap in enumerate(self._gaps):
            most, changed = self._active[k], self._active[k + 1]
            w = belief[:most]
            faded = -np.expm1(-2.0 * root * gap)
            was_hot = w - faded * ((stay_hot + to_hot) * w - to_hot)
            was_cold = (1.0 - w) - faded * (stay_cold - (stay_cold + to_cold) * w)
            was_hot[:changed] *= hot
            was_cold[:changed] *= cold
            norm = np.maximum(was_hot + was_cold, _TINY)
            logs[:most] += np.log(norm)
            belief[:most] = np.clip(was_hot / norm, 0.0, 1.0)
        logs += (root - (start + end + hot + cold) / 2.0) * self._exposure + np.log(weight)
        top = logs.max(axis=1)
        return float(np.sum(top + np.log(np.exp(logs - top[:, None]).sum(axis=1))))


def _gaps(history: History) -> Array:
    """Return the seconds before each change, and those after the last."""
    kept = history.changes[:_MAX_CHANGES_PER_SCOPE]
    end_s = history.end_s if len(kept) == len(history.changes) else kept[-1]
    return np.maximum(0.0, np.diff(np.array([history.start_s, *kept, end_s])))


def _sd(log_sd: float) -> float:
    return min(_MAX_SD, max(_MIN_SD, math.exp(min(1.0, log_sd))))


def _point(prior: Prior) -> Array:
    """Return the log-normal distributions with the means and variances of the prior's gamma ones."""
    hot_variance, cold_variance = math.log1p(1 / prior.hot_shape), math.log1p(1 / prior.cold_shape)
    return np.array(
        [
            math.log(prior.hot_per_s) - hot_variance / 2,
            math.log(hot_variance) / 2,
            math.log(prior.cold_per_s) - cold_variance / 2,
            math.log(cold_variance) / 2,
            math.log(prior.start_per_s),
            math.log(prior.end_per_s),
        ]
    )


def _prior(point: Array) -> Prior:
    hot_mean, hot_log_sd, cold_mean, cold_log_sd, start, end = map(float, point)
    if hot_mean < cold_mean:  # the two states are told apart by their rates alone
        hot_mean, hot_log_sd, cold_mean, cold_log_sd = cold_mean, cold_log_sd, hot_mean, hot_log_sd
        start, end = end, start
    hot_sd, cold_sd = _sd(hot_log_sd), _sd(cold_log_sd)
    cold = _within(math.exp(cold_mean + cold_sd**2 / 2), _SLOWEST, _FASTEST)
    return Prior(
        start_per_s=_within(math.exp(start), *_STARTS),
        end_per_s=_within(math.exp(end), *_ENDS),
        hot_per_s=_within(math.exp(hot_mean + hot_sd**2 / 2), _MIN_CONTRAST * cold, _MIN_CONTRAST * _FASTEST),
        hot_shape=_within(1 / math.expm1(hot_sd**2), _MIN_SHAPE, _MAX_SHAPE),
        cold_per_s=cold,
        cold_shape=_within(1 / math.expm1(cold_sd**2), _MIN_SHAPE, _MAX_SHAPE),
    )


def _within(value: float, least: float, most: float) -> float:
    return min(most, max(least, value))
