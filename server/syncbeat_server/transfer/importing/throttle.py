"""Chooses the size of batches, and the pauses between them, by how long the database takes (ADR 191). Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThrottleRule:
    """Bounds the controller.

    Attributes:
        target_s: Seconds that a batch is to take at most: so long do writers of its scopes wait for their locks.
        least: The smallest batch, in places of the export.
        most: The largest one.
        busy_ratio: A place that takes so many times what it took at best tells of a database that is busy with others.
        longest_pause_s: The longest pause between two batches.
    """

    target_s: float = 0.25
    least: int = 20
    most: int = 2_000
    busy_ratio: float = 3.0
    longest_pause_s: float = 2.0


DEFAULT_THROTTLE = ThrottleRule()

_GROW, _LEAST_SHRINK = 1.25, 0.5
_FULL_SHARE = 0.8  # of the target: above it a batch does not grow
# The best time is forgotten by 1 % a batch, so that a part of the export with larger values is not taken for a busy
# database for longer than some hundred batches.
_FORGET = 1.01


class Throttle:
    """Grows batches while they take less than the target, shrinks them when they take more, and pauses when busy.

    Additive rules would take hundreds of batches to find the size; this finds it in a dozen.
    """

    def __init__(self, rule: ThrottleRule = DEFAULT_THROTTLE) -> None:
        self._rule = rule
        self._size = float(rule.least)
        self._best_s: float | None = None

    @property
    def batch_size(self) -> int:
        """Return the places that the next batch is to have at most."""
        return int(self._size)

    def observe(self, places: int, elapsed_s: float) -> float:
        """Learn what a batch took; return the seconds to pause before the next."""
        rule = self._rule
        if elapsed_s > rule.target_s:
            self._size = max(rule.least, self._size * max(_LEAST_SHRINK, rule.target_s / elapsed_s))
        elif elapsed_s < _FULL_SHARE * rule.target_s and places >= self._size // 2:
            self._size = min(rule.most, self._size * _GROW)
        if places < rule.least:
            return 0.0  # the rest of a file, which is all overhead
        per_place_s = elapsed_s / places
        self._best_s = per_place_s if self._best_s is None else min(self._best_s * _FORGET, per_place_s)
        ratio = per_place_s / self._best_s if self._best_s > 0.0 else 1.0
        if ratio <= rule.busy_ratio or elapsed_s <= rule.target_s:
            return 0.0
        # Half of the time belongs to the others then, and more the slower it is.
        return min(rule.longest_pause_s, elapsed_s * ratio / rule.busy_ratio)
