"""How long a call may take: as `asyncio.timeout`, without a timer of the loop for each call.

A timer costs ten microseconds, a tenth of what a call costs besides gRPC. Calls that end in the same hundredth of a
second share one, and so may end up to that much early.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

_PER_SECOND = 100


class Budgets:
    """The calls under way of one loop, by when they must end."""

    def __init__(self) -> None:
        self._ending: dict[int, set[Budget]] = {}
        self.started = 0
        """How many calls there were."""
        self.under_way = 0
        """How many there are now. Of a stream that is only what comes before its first answer."""

    def budget(self, seconds: float) -> Budget:
        """A block that raises TimeoutError when it takes longer."""
        return Budget(self, seconds)

    def join(self, budget: Budget, seconds: float) -> set[Budget]:
        """The calls that end together with this one."""
        loop = asyncio.get_running_loop()
        place = int((loop.time() + seconds) * _PER_SECOND)
        together = self._ending.get(place)
        if together is None:
            together = self._ending[place] = set()
            loop.call_at(place / _PER_SECOND, self._end, place)
        together.add(budget)
        return together

    def _end(self, place: int) -> None:
        for budget in self._ending.pop(place):
            budget.end()


class Budget:
    """One call's block."""

    __slots__ = ("_budgets", "_cancelling", "_ended", "_seconds", "_task", "_together")

    def __init__(self, budgets: Budgets, seconds: float) -> None:
        self._budgets = budgets
        self._seconds = seconds
        self._ended = False

    def end(self) -> None:
        """Its time is over."""
        self._ended = True
        self._task.cancel()

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a budget needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        budgets = self._budgets
        self._together = budgets.join(self, self._seconds)
        budgets.started += 1
        budgets.under_way += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._together.discard(self)
        self._budgets.under_way -= 1
        # As in asyncio.Timeout: a cancellation that is not ours goes on.
        if self._ended and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
