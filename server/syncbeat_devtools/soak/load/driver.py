"""Drives a run: sends each call when it is due, however long those before it take, and records what becomes of it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from syncbeat_devtools.soak.load.calls import Calls, EventFailed
from syncbeat_devtools.soak.load.fleet import Fleet, User
from syncbeat_devtools.soak.load.push_checks import PushChecks
from syncbeat_devtools.soak.measure.recorder import NOT_SENT, Recorder
from syncbeat_devtools.soak.plan import POLL_INTERVAL_S, Arrival, Operation, Plan
from syncbeat_server.clock import Clock
from syncbeat_server.rpc.deployment import CallError, describe_failure

_LONGEST_SLEEP_S = 0.2  # so that the end of a run is noticed
_FRESH_S = 120.0
"""The life, in seconds, that an access token has to have left for a poll to go out with it."""
_TRIES = 8
_LATE_FIRST_MESSAGE_S = 5.0
"""The time, in seconds, that a stream may lack its first message when the run ends: one that lacks it longer failed."""


@dataclass(frozen=True)
class DriverRule:
    """The bounds of a driver."""

    duration_s: float
    max_in_flight: int
    stream_hold_s: float


class Driver:
    """Sends planned calls and the polls of a fleet. The run's time goes on from where another life ended."""

    def __init__(
        self, plan: Plan, fleet: Fleet, calls: Calls, recorder: Recorder, clock: Clock, rule: DriverRule
    ) -> None:
        self._plan, self._fleet, self._calls, self._recorder = plan, fleet, calls, recorder
        self._clock, self._rule = clock, rule
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[asyncio.Task[None]] = set()
        self._origin = 0.0
        self.checks = PushChecks(calls.delivery_states, recorder.totals.push_states, clock, recorder.open_pushes)

    @property
    def elapsed_s(self) -> float:
        """Return the seconds of the run so far, over all its lives."""
        return self._clock.monotonic() - self._origin

    @property
    def in_flight(self) -> int:
        """Return how many calls are in flight, without streams."""
        return len(self._tasks)

    @property
    def open_streams(self) -> int:
        """Return how many streams are open."""
        return len(self._streams)

    async def run(self, elapsed_s: float, stop: asyncio.Event) -> None:
        """Send what is due until the run's time is over or `stop` is set; then let what is in flight end."""
        self._origin = self._clock.monotonic() - elapsed_s
        number = self._plan.first_after(elapsed_s)
        polls = self._first_polls(elapsed_s)
        checking = asyncio.ensure_future(self.checks.run())
        try:
            while not stop.is_set() and self.elapsed_s < self._rule.duration_s:
                arrival = self._plan.arrival(number) if self._plan.shares else None
                next_poll = polls[0][0] if polls else float("inf")
                next_call = arrival.at_s if arrival is not None else float("inf")
                wait_s = min(next_poll, next_call) - self.elapsed_s
                if wait_s > 0:
                    await self._clock.sleep(min(wait_s, _LONGEST_SLEEP_S))
                    continue
                if arrival is not None and next_call <= next_poll:
                    number += 1
                    self._send(arrival, number)
                else:
                    due_s, index = heapq.heappop(polls)
                    self._send_poll(due_s, index, polls)
                await asyncio.sleep(0)  # those that were sent go on
        finally:
            for task in (*self._streams, checking):
                task.cancel()
            await asyncio.gather(*self._streams, *self._tasks, checking, return_exceptions=True)

    def _first_polls(self, elapsed_s: float) -> list[tuple[float, int]]:
        if not self._fleet.polls:
            return []
        count = len(self._fleet.users)
        return [(elapsed_s + POLL_INTERVAL_S * number / count, number) for number in range(count)]

    def _send(self, arrival: Arrival, number: int) -> None:
        fleet, calls = self._fleet, self._calls
        user = fleet.users[arrival.draw % len(fleet.users)]
        match arrival.operation:
            case Operation.PUBLISH:
                self._start(arrival, lambda: calls.publish(user.scope, number))
            case Operation.EVENT:
                self._start(arrival, lambda: calls.ingest(user.scope, f"{fleet.run_id}-{number}", number))
            case Operation.PUSH:
                self._start(arrival, lambda: self._push(user))
            case Operation.REFRESH:
                if fleet.has_sessions and (idle := self._idle_session(arrival.draw)) is not None:
                    self._start(arrival, lambda: self._refresh(idle))
            case Operation.STREAM:
                self._spawn(arrival.operation, arrival.at_s, self._stream(user, arrival.at_s), self._streams)
            case Operation.POLL | Operation.LIST:
                raise AssertionError("not planned")

    def _start(self, arrival: Arrival, call: Callable[[], Awaitable[None]]) -> None:
        self._spawn(arrival.operation, arrival.at_s, self._measure(arrival.operation, arrival.at_s, call), self._tasks)

    def _spawn(
        self, operation: Operation, due_s: float, work: Awaitable[object], into: set[asyncio.Task[None]]
    ) -> bool:
        now_s = self.elapsed_s
        self._recorder.totals.lateness.add(now_s - due_s)
        if len(self._tasks) + len(self._streams) >= self._rule.max_in_flight:
            if asyncio.iscoroutine(work):
                work.close()
            self._recorder.failure(operation, now_s, NOT_SENT, is_server_fault=False)
            return False
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[arg-type]  # nobody asks for its result
        into.add(task)
        task.add_done_callback(into.discard)
        return True

    async def _measure(self, operation: Operation, due_s: float, call: Callable[[], Awaitable[None]]) -> bool:
        try:
            await call()
        except CallError as error:
            failure = describe_failure(error)
            cause = f"{failure.code} {failure.reason}".strip()
            self._recorder.failure(operation, self.elapsed_s, cause, is_server_fault=failure.is_server_fault)
            return False
        except EventFailed:
            self._recorder.failure(operation, self.elapsed_s, "FAILED", is_server_fault=True)
            return False
        except _NoMessage:
            self._fail_unanswered(operation)
            return False
        now_s = self.elapsed_s
        self._recorder.success(operation, now_s, now_s - due_s)
        return True

    def _send_poll(self, due_s: float, index: int, polls: list[tuple[float, int]]) -> None:
        user = self._fleet.users[index]

        async def poll() -> None:
            try:
                await self._poll(user, due_s)
            finally:
                heapq.heappush(polls, (user.schedule.due_at, index))

        if not self._spawn(Operation.POLL, due_s, poll(), self._tasks):
            heapq.heappush(polls, (due_s + POLL_INTERVAL_S, index))

    async def _poll(self, user: User, due_s: float) -> None:
        if user.access_token and user.expires_at - self._clock.now().timestamp() < _FRESH_S and not user.is_refreshing:
            at_s = self.elapsed_s
            await self._measure(Operation.REFRESH, at_s, lambda: self._refresh(user))
            due_s += self.elapsed_s - at_s  # what is measured next is the poll alone
        has_news = False

        async def ask() -> None:
            nonlocal has_news
            try:
                hint = await self._calls.poll(user)
            except CallError as error:
                user.schedule.record_failure(describe_failure(error).retry_after_s, self.elapsed_s)
                raise
            interval_s = hint.poll_interval.ToMilliseconds() / 1000
            user.schedule.follow_hint(interval_s, hint.valid_duration.ToMilliseconds() / 1000, self.elapsed_s)
            has_news = hint.changed

        await self._measure(Operation.POLL, due_s, ask)
        while has_news:
            more = False

            async def fetch() -> None:
                nonlocal more
                more = await self._calls.list_page(user)

            await self._measure(Operation.LIST, self.elapsed_s, fetch)
            has_news = more

    async def _push(self, user: User) -> None:
        self.checks.add(await self._calls.send(user))

    async def _refresh(self, user: User) -> None:
        user.is_refreshing = True
        try:
            await self._calls.refresh(user)
        finally:
            user.is_refreshing = False

    def _idle_session(self, draw: int) -> User | None:
        """Return a user whose tokens nobody renews just now: a refresh token is spent once."""
        users = self._fleet.users
        for attempt in range(_TRIES):
            user = users[(draw + attempt) % len(users)]
            if not user.is_refreshing:
                return user
        return None

    def _fail_unanswered(self, operation: Operation) -> None:
        self._recorder.failure(operation, self.elapsed_s, "NO_MESSAGE", is_server_fault=True)

    async def _stream(self, user: User, due_s: float) -> None:
        call = self._calls.open_stream(user)
        is_open = False
        try:
            is_open = await self._measure(Operation.STREAM, due_s, lambda: self._first_message(call))
            if not is_open:
                return
            async with asyncio.timeout(self._rule.stream_hold_s):
                async for message in call:
                    self._calls.read_stream_message(message)
        except TimeoutError:
            return
        except asyncio.CancelledError:
            if not is_open and self.elapsed_s - due_s >= _LATE_FIRST_MESSAGE_S:
                self._fail_unanswered(Operation.STREAM)
            raise
        except CallError as error:
            failure = describe_failure(error)
            cause = f"BROKEN {failure.code} {failure.reason}".strip()
            self._recorder.failure(Operation.STREAM, self.elapsed_s, cause, is_server_fault=failure.is_server_fault)
        finally:
            call.cancel()

    async def _first_message(self, call: AsyncIterable[Any]) -> None:
        try:
            async with asyncio.timeout(self._rule.stream_hold_s):
                message = await anext(aiter(call))
        except (TimeoutError, StopAsyncIteration):
            raise _NoMessage from None
        self._calls.read_stream_message(message)


class _NoMessage(Exception):
    """A stream ended, or was held for its time, before its first message."""
