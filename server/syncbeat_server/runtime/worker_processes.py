"""Runs slow pure functions in processes of their own, so that no call waits for another's large document (ADR 96).

A thread would not do: one call of C over a megabyte holds the interpreter's lock to its end.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from typing import Any, NamedTuple, Protocol

import orjson

from syncbeat_server.errors import DependencyDown, Overloaded, SyncbeatError
from syncbeat_server.ops.process_group import launcher
from syncbeat_server.runtime.worker_child import HEADER_BYTES

_log = logging.getLogger(__name__)

_MOST_CHILDREN = 2  # so that the hard document of one caller leaves one to the others
_MOST_WAITING = 256
_PATIENCE_S = 8.0  # a hundred times what the worst document takes on a machine that does nothing else
_CHUNK_BYTES = 1 << 20
_TRIES = 2  # what a child dies of may have been no fault of the work that it did


class Aside(Protocol):
    """Runs `work` with its arguments; see `Children.run`."""

    async def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the work returns."""
        ...


async def inline(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run it here and now: where nobody else is served."""
    return work(*arguments)


class _Job(NamedTuple):
    question: bytes
    answered: asyncio.Future[Any]


class Children:
    """Up to two child processes, started when there is work for them, and again when one has ended."""

    def __init__(self, most: int = _MOST_CHILDREN, patience_s: float = _PATIENCE_S) -> None:
        self._most = most
        self._patience_s = patience_s
        self._waiting: deque[_Job] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.subprocess.Process] = []
        self._is_closed = False

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `work`, a function of a module, makes of its arguments; all of it has to have a form in JSON.

        Work whose caller has left before it began is not done.

        Raises:
            ValueError: the work raised it.
            Overloaded: too much waits already.
            DependencyDown: no child process could do it in time (8 s).
            SyncbeatError: the work raised anything else.
        """
        if self._is_closed or len(self._waiting) >= _MOST_WAITING:
            raise Overloaded("too many large documents wait to be looked at")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Any] = loop.create_future()
        name = f"{work.__module__}:{work.__qualname__}"
        self._waiting.append(_Job(orjson.dumps([name, arguments]), answered))
        if len(self._lanes) < self._most:
            lane = loop.create_task(self._work(), context=Context())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await answered

    async def close(self) -> None:
        """End the children; what still waits is refused."""
        self._is_closed = True
        for lane in list(self._lanes):
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        while self._waiting:
            _settle(self._waiting.popleft().answered, DependencyDown("the server stops"))
        while self._idle:
            await _end(self._idle.pop())

    async def _work(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            if job.answered.done():
                continue
            try:
                answer = await self._answered(job.question)
            except asyncio.CancelledError:
                _settle(job.answered, DependencyDown("the server stops"))
                raise
            except Exception as error:  # noqa: BLE001  # it is the caller's
                _settle(job.answered, error)
            else:
                _settle(job.answered, answer)

    async def _answered(self, question: bytes) -> Any:
        for _ in range(_TRIES):
            child = await self._child()
            kept = False
            try:
                async with asyncio.timeout(self._patience_s):
                    answer = await _ask(child, question)
                kept = True
                return _result(answer)
            except (OSError, asyncio.IncompleteReadError):
                _log.warning("a process for large documents ended and is replaced")
            except TimeoutError:
                _log.warning("a process for large documents did not answer in time and is replaced")
                break
            finally:
                if kept:
                    self._idle.append(child)
                else:
                    await _end(child)
        raise DependencyDown("a large document could not be looked at in time")

    async def _child(self) -> asyncio.subprocess.Process:
        while self._idle:
            child = self._idle.pop()
            if child.returncode is None:
                return child
        try:
            return await asyncio.create_subprocess_exec(
                *launcher(signal.SIGKILL),
                *(sys.executable, "-m", "syncbeat_server.runtime.worker_child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_CHUNK_BYTES,
            )
        except OSError as error:
            raise DependencyDown("a process for large documents cannot be started") from error


@asynccontextmanager
async def children() -> AsyncIterator[Children]:
    """Children that are ended at the end of the block."""
    made = Children()
    try:
        yield made
    finally:
        await made.close()


async def _ask(child: asyncio.subprocess.Process, question: bytes) -> bytes:
    if child.stdin is None or child.stdout is None:
        raise BrokenPipeError
    child.stdin.write(len(question).to_bytes(HEADER_BYTES))
    child.stdin.write(question)
    await child.stdin.drain()
    length = int.from_bytes(await child.stdout.readexactly(HEADER_BYTES))
    return await child.stdout.readexactly(length)


def _result(answer: bytes) -> Any:
    kind, value = orjson.loads(answer)
    if kind == "answer":
        return value
    if kind == "ValueError":
        raise ValueError(value)
    raise SyncbeatError(f"work in a process of its own raised {kind}")


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):
            child.kill()
    await child.wait()


def _settle(answered: asyncio.Future[Any], answer: Any) -> None:
    if answered.done():
        return
    if isinstance(answer, Exception):
        answered.set_exception(answer)
    else:
        answered.set_result(answer)
