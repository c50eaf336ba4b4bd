"""Confidence intervals by bootstrap over days: days are drawn with replacement, the same ones for both of a ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from syncbeat_devtools.simulate.engine.tally import Tally

_DRAWS, _QUANTILE_DRAWS, _SEED = 1_000, 200, 1
_LEVEL = (2.5, 97.5)

Interval = tuple[float, float]


class DayDraws:
    """Draws of the days of one study, each day as often as it was drawn."""

    def __init__(self, days: int) -> None:
        chosen = np.random.default_rng(_SEED).integers(0, days, size=(_DRAWS, days))
        self._times: NDArray[np.int64] = np.stack([(chosen == day).sum(axis=1) for day in range(days)], axis=1)
        self._days = days

    def requests(self, tallies: Sequence[Tally], plays: float) -> Interval | None:
        """Return the 95 % interval of the mean requests of a day, which was played so many times."""
        return self._interval(self._sums([tally.requests for tally in tallies]) / self._days / plays)

    def mean_s(self, tallies: Sequence[Tally]) -> Interval | None:
        """Return the 95 % interval of the mean staleness."""
        return self._interval(self._means(tallies))

    def ratio(self, tallies: Sequence[Tally], others: Sequence[Tally]) -> Interval | None:
        """Return the 95 % interval of the requests of one policy over another's at one mean.

        What the means of a draw differ is corrected: requests are inversely proportional to the mean.
        """
        mine = self._sums([tally.requests for tally in tallies]) * self._means(tallies)
        theirs = self._sums([tally.requests for tally in others]) * self._means(others)
        return self._interval(mine / theirs)

    def quantile_s(self, tallies: Sequence[Tally], share: float) -> Interval | None:
        """Return the 95 % interval of a quantile of the staleness."""
        delays = np.concatenate([np.asarray(tally.delays) for tally in tallies])
        day = np.repeat(np.arange(self._days), [len(tally.delays) for tally in tallies])
        order = np.argsort(delays)
        delays, day = delays[order], day[order]
        found = np.empty(_QUANTILE_DRAWS)
        for draw, times in enumerate(self._times[:_QUANTILE_DRAWS]):
            weight = np.cumsum(times[day])
            place = int(np.searchsorted(weight, share * weight[-1], side="right"))
            found[draw] = delays[min(place, len(delays) - 1)] if weight[-1] else np.nan
        return self._interval(found)

    def _sums(self, values: Sequence[float]) -> NDArray[np.float64]:
        return np.asarray(self._times @ np.asarray(values, dtype=np.float64))

    def _means(self, tallies: Sequence[Tally]) -> NDArray[np.float64]:
        stale_s = self._sums([float(np.sum(tally.delays)) for tally in tallies])
        return stale_s / np.maximum(1.0, self._sums([len(tally.delays) for tally in tallies]))

    def _interval(self, values: NDArray[np.float64]) -> Interval | None:
        if self._days < 2:
            return None
        low, high = np.nanpercentile(values, _LEVEL)
        return float(low), float(high)
