"""Repeats what failed for a moment and may be repeated: a few times, spread out, within the deadline and a budget.

The budget keeps repeats from becoming a load of their own when a dependency is down for all calls: in a second no more
than a tenth of its calls are repeated, or ten.
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
    """Counts calls and their repeats by the second."""

    def __init__(self, rule: RetryRule, monotonic: Callable[[], float]) -> None:
        self._rule = rule
        self._monotonic = monotonic
        self._second = 0
        self._calls = self._calls_before = self._repeats = 0

    def count_call(self) -> None:
        """Count a call, the first attempt of which is made now."""
        self._turn()
        self._calls += 1

    def take(self) -> bool:
        """Tell if one more repeat is within the budget, and count it then."""
        self._turn()
        calls = max(self._calls, self._calls_before)
        if self._repeats >= max(self._rule.budget_least, int(self._rule.budget_share * calls)):
            return False
        self._repeats += 1
        return True

    def _turn(self) -> None:
        second = int(self._monotonic())
        if second != self._second:
            self._calls_before = self._calls if second == self._second + 1 else 0
            self._second, self._calls, self._repeats = second, 0, 0


class Retry:
    """Repeats calls of one kind, which share a budget."""

    def __init__(
        self, clock: Clock, rule: RetryRule | None = None, uniform: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._clock = clock
        self._rule = rule or RetryRule()
        self._uniform = uniform
        self._budget = RetryBudget(self._rule, clock.monotonic)

    async def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of `work`, which may be done twice without harm.

        Raises:
            DependencyDown: each attempt failed, or none more is worth while: the dependency was found to be away or
                unfit, the time until the deadline is too short, or too much is repeated already.
        """
        self._budget.count_call()
        for attempt in range(1, self._rule.attempts):
            try:
                return await work()
            except DependencyDown as error:
                pause_s = self._uniform(0.0, self._rule.first_s * 2.0 ** (attempt - 1))
                if not self._is_worth_while(error, pause_s) or not self._budget.take():
                    raise
            await self._clock.sleep(pause_s)
        return await work()

    def _is_worth_while(self, error: DependencyDown, pause_s: float) -> bool:
        # One that names a later moment, as the cool-down of an issuer's keys, is not asked before it.
        longest_s = self._rule.first_s * 2.0 ** (self._rule.attempts - 2)
        in_time = time_left_s() - pause_s >= self._rule.least_left_s
        return error.is_transient and in_time and error.retry_after_s <= longest_s
