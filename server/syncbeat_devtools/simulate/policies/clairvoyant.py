"""The lower bound for a log: the fewest requests of a policy that knows each commit before it happens.

Such a policy polls only at commits, so that the changes of a device are cut into runs, each found by a poll at its last
commit. At a price V of a stale second the best cuts follow from dynamic programming; the fewest requests at a mean S of
n changes are at least max over V of (requests + V * stale seconds) - V * S * n (Lagrangian duality).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from syncbeat_devtools.simulate.fleet.devices import DAY

_LEAST_PRICE, _MOST_PRICE = 1e-6, 10.0
_HALVINGS = 40


def least_requests(feeds: Sequence[Sequence[float]], mean_s: float) -> float:
    """Return a lower bound of the requests by which devices with these changes have a mean staleness of `mean_s`.

    Changes are seconds of the day, in order. What is left at midnight is found by a poll that no longer counts.
    """
    count = sum(map(len, feeds))
    if count == 0:
        return 0.0
    wanted = mean_s * count
    low, high = math.log(_LEAST_PRICE), math.log(_MOST_PRICE)
    best = 0.0
    for _ in range(_HALVINGS):
        middle = math.exp((low + high) / 2.0)
        requests, stale_s = _best_cuts(feeds, middle)
        # A bound at any price; concave in it, with stale_s - wanted as its slope.
        best = max(best, requests + middle * (stale_s - wanted))
        if stale_s > wanted:
            low = math.log(middle)
        else:
            high = math.log(middle)
    return best


def _best_cuts(feeds: Sequence[Sequence[float]], price: float) -> tuple[float, float]:
    """Return the requests and stale seconds of all devices that cost least at this price."""
    requests = stale_s = 0.0
    for changes in feeds:
        polls, waited_s = _cut(changes, price)
        requests += polls
        stale_s += waited_s
    return requests, stale_s


def _cut(changes: Sequence[float], price: float) -> tuple[int, float]:
    costs: list[tuple[float, int, float]] = [(0.0, 0, 0.0)]  # cost, polls and stale seconds up to each change
    for last in range(len(changes)):
        costs.append(_best_run(changes, last, changes[last], 1, costs, price))
    if not changes:
        return 0, 0.0
    # The last run may be left to the poll after midnight.
    end = min(costs[-1], _best_run(changes, len(changes) - 1, DAY, 0, costs, price))
    return end[1], end[2]


def _best_run(
    changes: Sequence[float],
    last: int,
    found_at: float,
    polls: int,
    costs: Sequence[tuple[float, int, float]],
    price: float,
) -> tuple[float, int, float]:
    """Return the least cost up to the change `last`, if the run that ends with it is found at `found_at`."""
    best = (math.inf, 0, 0.0)
    waited_s = 0.0
    # One poll more after the k-th change spares k times the wait from there on. No best cut leaves that above one poll,
    # so that the k-th longest wait is at most 1 / (price * k), and all together the harmonic sum of it.
    most = 1.0 + math.log(last + 1.0)
    for first in range(last, -1, -1):
        waited_s += found_at - changes[first]
        if price * waited_s > most:
            break
        before = costs[first]
        cost = before[0] + polls + price * waited_s
        if cost < best[0]:
            best = (cost, before[1] + polls, before[2] + waited_s)
    return best
