"""Decides if something fits into a limit: the one function through which every limit of the service goes.

A limit is a capacity, of which some is in use. What is in use is counted by the limit's owner (rows, streams, calls),
or drains by itself, as that of a rate does (`gcra.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from syncbeat_server.errors import RateLimited

_ROUNDING = 1e-6
"""Far less than one call or octet, and more than the rounding of sums of them."""
_LONGEST_WAIT_S = 31 * 86_400.0
_MAX_TOLD = 10**12


@dataclass(frozen=True, slots=True)
class Bound:
    """The most that may be in use at once.

    Attributes:
        capacity: Units that may be in use; infinite: no limit.
        per_second: Units that come free by themselves each second; 0: they come free when their owner ends them.
        retry_s: Seconds after which a caller may try again where `per_second` does not tell.
    """

    capacity: float
    per_second: float = 0.0
    retry_s: float = 60.0


class Decision(NamedTuple):
    """The answer of a limit.

    Attributes:
        allowed: There is room for what was asked.
        limit: The capacity.
        remaining: Whole units that are free: after this call if it is allowed, else as they were.
        wait_s: Seconds until the same call may be allowed; 0 if it is.
        reset_s: Seconds until nothing is in use if nothing else comes.
    """

    allowed: bool
    limit: int
    remaining: int
    wait_s: float
    reset_s: float


def decide(bound: Bound, used: float, cost: float = 1.0) -> Decision:
    """Decide if `cost` more units may be in use beside the `used` ones."""
    over = used + cost - bound.capacity
    if over <= _ROUNDING:
        return Decision(True, _whole(bound.capacity), _whole(-over), 0.0, _drained_in_s(bound, used + cost))
    wait_s = min(_LONGEST_WAIT_S, over / bound.per_second) if bound.per_second > 0.0 else bound.retry_s
    return Decision(
        False, _whole(bound.capacity), _whole(bound.capacity - used), wait_s, max(wait_s, _drained_in_s(bound, used))
    )


def refusal(message: str, decision: Decision, *, least_wait_s: float = 0.0, **metadata: str) -> RateLimited:
    """Return the error of a refused call, which tells limit, what remains, and when it is reset."""
    wait_s = max(least_wait_s, decision.wait_s)
    return RateLimited(
        message,
        retry_after_s=wait_s,
        limit=str(decision.limit),
        remaining=str(decision.remaining),
        reset=str(math.ceil(max(wait_s, decision.reset_s))),
        **metadata,
    )


def _drained_in_s(bound: Bound, used: float) -> float:
    if bound.per_second <= 0.0:
        return bound.retry_s
    return min(_LONGEST_WAIT_S, max(0.0, used) / bound.per_second)


def _whole(units: float) -> int:
    return int(min(_MAX_TOLD, max(0.0, units + _ROUNDING)))
