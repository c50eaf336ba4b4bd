"""Repeats what failed for a moment and may be repeated: a few times, spread out, within the deadline and a budget.

The budget keeps repeats from becoming a load of their own when a dependency is down for all calls: in a second there
are no more repeats than a tenth of the calls, or ten.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.runtime.deadline import time_left_s

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RetryRule:
    """The bounds of repeats.

    The n-th repeat comes after a random time of up to `first_s` * 2^(n-1) seconds (full jitter). In each second repeats
    are `budget_share` of the calls, and at least `budget_least`. One that would leave less than `least_left_s` until
    the deadline is not made.
    """

    attempts: int = 3
    first_s: float = 1.0
    budget_share: float = 0.1
    budget_least: int = 10
    least_left_s: float = 0.05


class RetryBudget:
    """Counts repeats by the second. `calls` returns how many calls there were, ever."""

    def __init__(self, rule: RetryRule, monotonic: Callable[[], float], calls: Callable[[], int]) -> None:
        self._rule = rule
        self._monotonic = monotonic
        self._calls = calls
        self._since_s, self._calls_then = monotonic(), calls()
        self._repeats = 0
        self._most = rule.budget_least

    def take(self) -> bool:
        """Tell if one more repeat is within the budget, and count it then."""
        self._turn()
        if self._repeats >= self._most:
            return False
        self._repeats += 1
        return True

    def _turn(self) -> None:
        # A share of the calls since it was looked last, so that calls that are not repeated cost nothing.
        now_s, calls = self._monotonic(), self._calls()
        passed_s = now_s - self._since_s
        if passed_s >= 1.0:
            per_s = (calls - self._calls_then) / passed_s
            self._most = max(self._rule.budget_least, int(self._rule.budget_share * per_s))
            self._since_s, self._calls_then, self._repeats = now_s, calls, 0


class Retry:
    """Repeats calls of one kind, which share a budget."""

    def __init__(
        self,
        clock: Clock,
        calls: Callable[[], int],
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`calls` returns how many calls of this kind there were, ever."""
        self._clock = clock
        self._rule = RetryRule()
        self._uniform = uniform
        self._budget = RetryBudget(self._rule, clock.monotonic, calls)

    async def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of `work`, which may be done twice without harm.

        Raises:
            DependencyDown: as `again`.
        """
        try:
            return await work()
        except DependencyDown as error:
            return await self.again(error, work)

    async def again(self, failed: DependencyDown, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of `work`, whose first attempt failed like this.

        Raises:
            DependencyDown: each attempt failed, or none more is worth while: the dependency was found to be away or
                unfit, the time until the deadline is too short, or too much is repeated already.
        """
        for attempt in range(1, self._rule.attempts):
            pause_s = self._uniform(0.0, self._rule.first_s * 2.0 ** (attempt - 1))
            if not self._is_worth_while(failed, pause_s) or not self._budget.take():
                break
            await self._clock.sleep(pause_s)
            try:
                return await work()
            except DependencyDown as error:
                failed = error
        raise failed

    def _is_worth_while(self, error: DependencyDown, pause_s: float) -> bool:
        # One that names a later moment, as the cool-down of an issuer's keys, is not asked before it.
        longest_s = self._rule.first_s * 2.0 ** (self._rule.attempts - 2)
        in_time = time_left_s() - pause_s >= self._rule.least_left_s
        return error.is_transient and in_time and error.retry_after_s <= longest_s
