"""Answers calls that arrive together one right after the other.

The plain version calls `work()` where the call arrives. Between calls that are served that way gRPC reads, writes and
wakes its threads, and each time the processor has to fetch our code and values into its caches anew. Served in one
batch, calls take half the time of our code and a third less of gRPC's. Paid for by the figure `hint_vs_echo`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from syncbeat_server.runtime.adaptive_batching import LONGEST_WAIT_S, BatchTrigger

_MAX_BATCH = 32


@dataclass(frozen=True)
class BatchTimings:
    """Bounds of the time that calls of one batch take from others."""

    longest_wait_s: float = LONGEST_WAIT_S
    """Seconds after which a batch is served though more calls arrive."""
    longest_turn_s: float = 0.005
    """Seconds after which no other call of a batch begins: nothing else runs meanwhile."""


_TIMINGS = BatchTimings()

Result = TypeVar("Result")


class RequestBatcher:
    """Queues the calls of one event loop and serves them in batches."""

    def __init__(self, timings: BatchTimings = _TIMINGS) -> None:
        self._timings = timings
        self._waiting: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._gathering = BatchTrigger(self._waiting, _MAX_BATCH, self._serve_batch, timings.longest_wait_s)

    def serve(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """Return the future of what `work` returns or raises once its batch is served.

        `work` runs outside the caller's task and context, so it must be given whatever it needs of them. It is not
        called if the future was cancelled meanwhile.
        """
        if not self._waiting:
            self._loop = asyncio.get_running_loop()  # kept for the batch, since it costs half a microsecond to ask
            self._gathering.arm()
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((work, future))
        return future

    def _serve_batch(self) -> None:
        time, served = asyncio.get_running_loop().time, 0
        until = time() + self._timings.longest_turn_s
        while self._waiting and served < _MAX_BATCH and (not served or time() < until):
            _settle(*self._waiting.popleft())  # its own frame, so that a raised exception holds no other call
            served += 1
        self._gathering.record_batch(served)
        if self._waiting:
            self._gathering.arm()


def _settle(work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
    if future.done():
        return
    try:
        future.set_result(work())
    except StopIteration as error:  # a future refuses it; a coroutine makes the same of it
        future.set_exception(RuntimeError(repr(error)).with_traceback(error.__traceback__))
    except BaseException as error:  # noqa: BLE001  # every exception is the caller's own; the other calls must go on
        future.set_exception(error)
    finally:
        del work, future
