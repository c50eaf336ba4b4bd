"""Lower bounds: the fewest requests of any policy at a mean staleness, had it known every rate in advance.

For Poisson changes at rate r(t), requests f(t) a second leave a mean staleness of 1/(2f) without signals, and of
(r/f - 1)/(2r) if a signal announces each change and one request may serve several. The fewest requests at a given mean
over all changes are f = k*sqrt(r) without signals and f = min(r, k*sqrt(r)) with them, k the same everywhere
(Lagrange). No causal policy knows r, so the true optimum lies above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from syncbeat_devtools.simulate.fleet.devices import Device
from syncbeat_devtools.simulate.fleet.push_channel import Handset, PushConditions

_HALVINGS = 80


@dataclass(frozen=True, slots=True)
class Bound:
    """The data of the bounds for some devices: seconds spent at each rate, separated by whether signals reach them."""

    polled: tuple[tuple[float, float], ...]
    """(rate, seconds) of devices that no signal reaches."""
    signalled: tuple[tuple[float, float], ...] = ()

    def changes(self) -> float:
        """Return the expected changes."""
        return sum(rate * span for rate, span in (*self.polled, *self.signalled))

    def least_requests(self, mean_s: float) -> float:
        """Return the fewest requests of all these devices at this mean staleness of a change."""
        if not self.signalled:
            roots = sum(math.sqrt(rate) * span for rate, span in self.polled)
            return roots * roots / (2.0 * mean_s * self.changes())
        low, high = 1e-9, 1e6
        wanted = mean_s * self.changes()
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            if self._staleness(middle) > wanted:
                low = middle
            else:
                high = middle
        return self._requests(high)

    def _requests(self, k: float) -> float:
        polled = sum(k * math.sqrt(rate) * span for rate, span in self.polled)
        return polled + sum(min(rate, k * math.sqrt(rate)) * span for rate, span in self.signalled)

    def _staleness(self, k: float) -> float:
        """Return the stale seconds over all changes."""
        polled = sum(math.sqrt(rate) * span / (2.0 * k) for rate, span in self.polled)
        waited = sum(max(0.0, math.sqrt(rate) / k - 1.0) * span / 2.0 for rate, span in self.signalled)
        return polled + waited


def poll_bound(devices: Iterable[Device]) -> Bound:
    """Return the bound of these devices without signals."""
    return Bound(tuple(stretch for device in devices for stretch in _stretches(device, hot=None)))


def signalled_bound(devices: Iterable[Device], handsets: Iterable[Handset], conditions: PushConditions) -> Bound:
    """Return the bound if pushes reach some of these devices, and streams those in a session."""
    polled: list[tuple[float, float]] = []
    signalled: list[tuple[float, float]] = []
    for device, handset in zip(devices, handsets, strict=True):
        hot, cold = _stretches(device, hot=True), _stretches(device, hot=False)
        (signalled if handset.reachable or conditions.unreached_stream else polled).extend(hot)
        (signalled if handset.reachable else polled).extend(cold)
    return Bound(tuple(polled), tuple(signalled))


def merge_bounds(bounds: Iterable[Bound]) -> Bound:
    """Return the bound of all devices together."""
    kept = list(bounds)
    return Bound(
        tuple(stretch for bound in kept for stretch in bound.polled),
        tuple(stretch for bound in kept for stretch in bound.signalled),
    )


def _stretches(device: Device, *, hot: bool | None) -> list[tuple[float, float]]:
    kept: list[tuple[float, float]] = []
    for state, rate in ((True, device.hot_per_s), (False, device.cold_per_s)):
        span = math.fsum(part.end - part.start for part in device.segments if part.hot is state)
        if span > 0.0 and hot in (None, state):
            kept.append((rate, span))
    return kept
