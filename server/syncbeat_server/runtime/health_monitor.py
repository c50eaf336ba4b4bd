"""Checks in the background what a process needs, and tells whether it is ready (ADR 152).

What readiness rests on is asked every one and a half seconds, and at once when a call has failed, so that a loss is
told within five seconds also by an idle process; the rest every 30 s, and every 5 s while it fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from syncbeat_server.clock import Clock
from syncbeat_server.errors import DependencyDown, Reason, SyncbeatError

_log = logging.getLogger(__name__)


class CheckState(StrEnum):
    """The states of what is checked."""

    OK = "ok"
    DEGRADED = "degraded"
    """Something is missing that the process can do without."""
    DOWN = "down"


class Readiness(StrEnum):
    """The states of a process."""

    READY = "ready"
    DEGRADED = "degraded"
    """Ready, and something that it can do without is missing."""
    NOT_READY = "not_ready"


@dataclass(frozen=True)
class CheckResult:
    """Result of a check. `detail` is for operators: it names settings and fixes, and no secret."""

    state: CheckState = CheckState.OK
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True)
class HealthRule:
    """Seconds between two checks: of what readiness rests on, of the rest, of the rest while it fails; and for one."""

    needed_every_s: float = 1.5
    every_s: float = 30.0
    again_s: float = 5.0
    timeout_s: float = 1.5
    """Of one try. There are two: a busy process may miss the first answer, though it has arrived."""


@dataclass(frozen=True)
class HealthCheck:
    """A check by its name. `ask` raises what is wrong, or returns how it is.

    While one that is `needed` is down, the process is not ready. One that is not reads memory only: it is asked for
    each report.
    """

    name: str
    ask: Callable[[], Coroutine[Any, Any, CheckResult]]
    needed: bool = False


@dataclass(frozen=True)
class HealthReport:
    """State of a process at one moment."""

    readiness: Readiness
    checks: Mapping[str, CheckResult] = field(default_factory=dict)
    fault: CheckResult | None = None
    """The check that keeps it from being ready."""

    @property
    def ready(self) -> bool:
        """Return True if the process is to be sent calls."""
        return self.readiness is not Readiness.NOT_READY

    @property
    def passed(self) -> Mapping[str, bool]:
        """Return by the name of each check whether it found nothing."""
        return {name: result.state is CheckState.OK for name, result in self.checks.items()}

    def serves(self, needed: Sequence[str]) -> bool:
        """Return True if the process is ready for what needs these checks alone."""
        if self.fault is not None and self.fault not in self.checks.values():
            return False  # it starts or ends
        return all(self.checks[name].state is not CheckState.DOWN for name in needed if name in self.checks)


_STARTING = CheckResult(CheckState.DOWN, Reason.DEPENDENCY_DOWN, "this process starts")
_DRAINING = CheckResult(CheckState.DOWN, Reason.OVERLOADED, "this process drains: it takes no more calls")


class HealthMonitor:
    """Runs the checks of one process, and keeps their last results."""

    def __init__(self, clock: Clock, failed: asyncio.Event, rule: HealthRule | None = None) -> None:
        """`failed` is set by whoever sees a dependency fail: what is needed is then asked at once."""
        self._clock = clock
        self._failed = failed
        self._rule = rule or HealthRule()
        self._checks: dict[str, HealthCheck] = {}
        self._results: dict[str, CheckResult] = {}
        self._needed_at_s = float("-inf")
        self._asking = asyncio.Lock()
        self._abandoned: set[asyncio.Future[CheckResult]] = set()
        self._listeners: list[Callable[[HealthReport], None]] = []
        self._serving = self._draining = False

    def add(self, check: HealthCheck) -> None:
        """Add a check, which counts as passed until it is asked."""
        self._checks[check.name] = check
        self._results[check.name] = CheckResult()

    def start_serving(self) -> None:
        """Let the process be ready from here on, if what it needs is there."""
        self._serving = True
        self._tell()

    def drain(self) -> None:
        """Let the process be ready no longer."""
        self._draining = True
        self._tell()

    @property
    def report(self) -> HealthReport:
        """Return the state by the last results."""
        fault = _DRAINING if self._draining else None if self._serving else _STARTING
        for name, result in self._results.items():
            if fault is None and self._checks[name].needed and result.state is CheckState.DOWN:
                fault = result
        if fault is not None:
            return HealthReport(Readiness.NOT_READY, dict(self._results), fault)
        passed = all(result.state is CheckState.OK for result in self._results.values())
        return HealthReport(Readiness.READY if passed else Readiness.DEGRADED, dict(self._results))

    async def fresh_report(self) -> HealthReport:
        """Return the state of now, asking what is needed anew if that was a while ago, or a call has failed since."""
        await self._ask_needed()
        await self._ask_rest()
        return self.report

    @contextmanager
    def followed(self, listener: Callable[[HealthReport], None]) -> Iterator[None]:
        """Tell the listener the state now, and whenever a check changes, for the block."""
        self._listeners.append(listener)
        listener(self.report)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    async def run(self) -> None:
        """Check for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_needed())
            group.create_task(self._watch_rest())

    async def _watch_needed(self) -> None:
        while True:
            await self._ask_needed()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rule.needed_every_s):
                    await self._failed.wait()
                    # Many calls fail at once: they are one reason to ask.
                    await asyncio.sleep(self._rule.needed_every_s / 5)

    async def _watch_rest(self) -> None:
        while True:
            passed = await self._ask_rest()
            await self._clock.sleep(self._rule.every_s if passed else self._rule.again_s)

    async def _ask_rest(self) -> bool:
        results = [await self._ask(check) for check in list(self._checks.values()) if not check.needed]
        return all(result.state is CheckState.OK for result in results)

    async def _ask_needed(self) -> None:
        async with self._asking:
            age_s = self._clock.monotonic() - self._needed_at_s
            if not self._failed.is_set() and age_s < self._rule.needed_every_s / 2:
                return
            await asyncio.gather(*(self._ask(check) for check in self._checks.values() if check.needed))
            self._failed.clear()  # now: a check that fails has set it too
            self._needed_at_s = self._clock.monotonic()

    async def _ask(self, check: HealthCheck) -> CheckResult:
        result = await self._answer(check)
        before, self._results[check.name] = self._results[check.name], result
        if result.state is not before.state:
            log = _log.info if result.state is CheckState.OK else _log.warning
            log("health changed", extra={"check": check.name, "state": result.state, "detail": result.detail})
            self._tell()
        return result

    async def _answer(self, check: HealthCheck) -> CheckResult:
        for _ in range(2):
            asking = asyncio.ensure_future(check.ask())
            try:
                await asyncio.wait([asking], timeout=self._rule.timeout_s)
                if asking.done():
                    return asking.result()
            except SyncbeatError as error:
                return CheckResult(CheckState.DOWN, error.reason, error.message)
            finally:
                self._abandon(asking)
        silent = DependencyDown(f"no answer within {self._rule.timeout_s:g} s, twice")
        return CheckResult(CheckState.DOWN, silent.reason, silent.message)

    def _abandon(self, asking: asyncio.Future[CheckResult]) -> None:
        # Its end is not waited for: giving up a statement takes as long as the database's silence.
        if not asking.done():
            self._abandoned.add(asking)
            asking.add_done_callback(self._abandoned.discard)
            asking.cancel()

    def _tell(self) -> None:
        report = self.report
        for listener in self._listeners:
            listener(report)
