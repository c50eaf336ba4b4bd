"""Counts times in buckets whose width grows with the time, so that any number of them takes the same memory.

As HdrHistogram does it: each power of two is divided evenly. http://hdrhistogram.org
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

_UNIT_S = 1e-5  # the resolution: 10 us, below what a call over a network takes
_OCTAVES = 26  # up to 2^26 units, 11 minutes; what takes longer counts as that
FINE, COARSE = 5, 2
"""Bits of the divisions of an octave: 32, an error below 1.6 %, and 4, below 12.5 %."""


class Histogram:
    """A histogram of seconds with fixed buckets: `bits` decides how many divisions an octave has."""

    def __init__(self, bits: int = FINE, counts: Sequence[tuple[int, int]] = (), total_s: float = 0.0) -> None:
        self.bits = bits
        self._counts = array("Q", bytes(8 * _buckets(bits)))
        for index, count in counts:
            self._counts[index] = count
        self.count = sum(self._counts)
        self.total_s = total_s

    def add(self, seconds: float) -> None:
        """Count a time; one below 0 counts as 0."""
        self._counts[_index(max(0, int(seconds / _UNIT_S)), self.bits)] += 1
        self.count += 1
        self.total_s += max(0.0, seconds)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram of the same bits."""
        for index, count in other.sparse():
            self._counts[index] += count
        self.count += other.count
        self.total_s += other.total_s

    def quantile(self, share: float) -> float | None:
        """Return the time that this share of all took at most, as the middle of its bucket; None without any."""
        if not self.count:
            return None
        wanted = max(1, -int(-self.count * share // 1))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= wanted:
                return _middle(index, self.bits)
        return None

    def mean(self) -> float | None:
        """Return the mean; None without any."""
        return self.total_s / self.count if self.count else None

    def sparse(self) -> list[tuple[int, int]]:
        """Return the buckets that hold any, by their index."""
        return [(index, count) for index, count in enumerate(self._counts) if count]


def _buckets(bits: int) -> int:
    return (_OCTAVES - bits + 1) << bits


def _index(units: int, bits: int) -> int:
    octave = max(0, units.bit_length() - 1 - bits)
    return min((octave << bits) + (units >> octave), _buckets(bits) - 1)


def _middle(index: int, bits: int) -> float:
    octave = max(0, (index >> bits) - 1)
    low = (index - (octave << bits)) << octave
    return (low + (1 << octave) / 2) * _UNIT_S
