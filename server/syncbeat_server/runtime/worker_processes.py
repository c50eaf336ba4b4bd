"""Runs slow pure functions in worker processes, so that no call waits for another's large document (ADR 96).

A thread would not help: one call of C over a megabyte holds the interpreter's lock to its end.
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
from syncbeat_server.ops.process_group import launch_prefix
from syncbeat_server.runtime.worker_child import HEADER_BYTES

_log = logging.getLogger(__name__)

_MAX_PROCESSES = 2  # so that a hard document of one caller leaves one process to the others
_MAX_WAITING = 256
_TIMEOUT_S = 8.0  # a hundred times the worst document on an idle machine
_CHUNK_BYTES = 1 << 20
_TRIES = 2  # a process may die of something other than the work that it was given


class RunInWorker(Protocol):
    """Runs `work` with its arguments; see `WorkerProcesses.run`."""

    async def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of the work."""
        ...


async def run_inline(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run the work on the caller's loop, for processes that serve nobody else."""
    return work(*arguments)


class _Job(NamedTuple):
    request: bytes
    result: asyncio.Future[Any]


class WorkerProcesses:
    """Runs work in up to two child processes, started when there is work, and replaced when one has ended."""

    def __init__(self, most: int = _MAX_PROCESSES, timeout_s: float = _TIMEOUT_S) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._waiting: deque[_Job] = deque()
        self._lanes: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.subprocess.Process] = []
        self._is_closed = False

    async def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of `work`, a module's function, for arguments; all of them must have a form in JSON.

        Work whose caller has left before it began is skipped.

        Raises:
            ValueError: the work raised it.
            Overloaded: too many calls wait already.
            DependencyDown: no process could do it in time (8 s).
            SyncbeatError: the work raised anything else.
        """
        if self._is_closed or len(self._waiting) >= _MAX_WAITING:
            raise Overloaded("too many large documents wait to be looked at")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Any] = loop.create_future()
        name = f"{work.__module__}:{work.__qualname__}"
        self._waiting.append(_Job(orjson.dumps([name, arguments]), result))
        if len(self._lanes) < self._most:
            lane = loop.create_task(self._work(), context=Context())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await result

    async def close(self) -> None:
        """End the processes, and fail the work that still waits."""
        self._is_closed = True
        for lane in list(self._lanes):
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        while self._waiting:
            _settle(self._waiting.popleft().result, DependencyDown("the server stops"))
        while self._idle:
            await _end(self._idle.pop())

    async def _work(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            if job.result.done():
                continue
            try:
                result = await self._run_request(job.request)
            except asyncio.CancelledError:
                _settle(job.result, DependencyDown("the server stops"))
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is goes to the caller
                _settle(job.result, error)
            else:
                _settle(job.result, result)

    async def _run_request(self, request: bytes) -> Any:
        for _ in range(_TRIES):
            child = await self._child()
            kept = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    answer = await _ask(child, request)
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
                *launch_prefix(signal.SIGKILL),
                *(sys.executable, "-m", "syncbeat_server.runtime.worker_child"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_CHUNK_BYTES,
            )
        except OSError as error:
            raise DependencyDown("a process for large documents cannot be started") from error


@asynccontextmanager
async def open_worker_processes() -> AsyncIterator[WorkerProcesses]:
    """Yield worker processes that end with the block."""
    processes = WorkerProcesses()
    try:
        yield processes
    finally:
        await processes.close()


async def _ask(child: asyncio.subprocess.Process, request: bytes) -> bytes:
    if child.stdin is None or child.stdout is None:
        raise BrokenPipeError
    child.stdin.write(len(request).to_bytes(HEADER_BYTES))
    child.stdin.write(request)
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


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
