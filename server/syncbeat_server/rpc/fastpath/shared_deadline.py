"""How long a call may take: as `asyncio.timeout`, without a timer of the loop for each call.

A timer costs ten microseconds, a tenth of what a call costs besides gRPC. Calls that never wait have none; those that
end in the same hundredth of a second share one, and so may end up to that much early.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

_PER_SECOND = 100

Answer = TypeVar("Answer")


class Budgets:
    """The calls under way of one loop, by when they must end."""

    def __init__(self) -> None:
        self._ending: dict[int, set[Budget]] = {}

    @types.coroutine
    def within(self, seconds: float, work: Coroutine[Any, Any, Answer]) -> Generator[Any, Any, Answer]:
        """What `work` answers; to be awaited. Its time runs from when it first has to wait.

        Raises:
            TimeoutError: it took longer.
        """
        try:
            waits_for = work.send(None)
            with Budget(self, seconds):
                return (yield from _resumed(work, waits_for))
        except StopIteration as done:
            answer: Answer = done.value
            return answer

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


def _resumed(work: Coroutine[Any, Any, Answer], waits_for: Any) -> Generator[Any, Any, Answer]:
    # `yield from` for a coroutine that has begun already (PEP 380).
    try:
        while True:
            try:
                sent = yield waits_for
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the work's to handle
                waits_for = work.throw(error)
            else:
                waits_for = work.send(sent)
    except StopIteration as done:
        answer: Answer = done.value
        return answer


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
        self._together = self._budgets.join(self, self._seconds)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._together.discard(self)
        # As in asyncio.Timeout: a cancellation that is not ours goes on.
        if self._ended and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
