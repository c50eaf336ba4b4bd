"""Runs steps in order, times each, and undoes what they made, whatever became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from syncbeat_server.clock import Clock
from syncbeat_server.rpc.deployment import CallError, describe_failure

CLEAN_UP_S = 20.0
"""The time that all undoing together may take, in seconds, beside that of the steps."""


class StepFailed(Exception):
    """A step did not come out as it has to; the message says how."""


@dataclass(frozen=True)
class StepResult:
    """Holds the outcome of one step. `detail` says what was seen, or why it failed."""

    name: str
    ok: bool
    seconds: float
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return {"name": self.name, "ok": self.ok, "seconds": round(self.seconds, 4), "detail": self.detail}


@dataclass
class Steps:
    """Runs the steps and keeps what became of each. `tell` is called with each result as it comes."""

    clock: Clock
    tell: Callable[[StepResult], None]
    results: list[StepResult] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)
    _undo: list[tuple[str, Callable[[], Awaitable[object]]]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell if every step came out right, those of cleaning up too."""
        return bool(self.results) and all(result.ok for result in self.results)

    async def run(self, name: str, work: Callable[[], Awaitable[str]]) -> None:
        """Run a step, which returns what it saw.

        Raises:
            StepFailed: it failed; that is kept and told.
        """
        began = self.clock.monotonic()
        try:
            detail = await work()
        except BaseException as error:
            self._keep(StepResult(name, False, self.clock.monotonic() - began, _why(error)))
            if isinstance(error, CallError):
                raise StepFailed(name) from error
            raise
        self._keep(StepResult(name, True, self.clock.monotonic() - began, detail))

    def undo_later(self, what: str, undo: Callable[[], Awaitable[object]]) -> None:
        """Remember how to undo something. Said before it is made: a call that failed may have made it."""
        self._undo.append((what, undo))

    async def clean_up(self) -> None:
        """Undo everything, the last first. What fails is named in `left_behind` and does not keep the others."""
        began = self.clock.monotonic()
        faults: list[str] = []
        while self._undo:
            what, undo = self._undo.pop()
            left_s = CLEAN_UP_S - (self.clock.monotonic() - began)
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await undo()
            except (CallError, TimeoutError) as error:
                if isinstance(error, CallError) and describe_failure(error).code == "NOT_FOUND":
                    continue
                self.left_behind.append(what)
                faults.append(f"{what}: {_why(error)}")
        self._keep(
            StepResult("clean-up", not faults, self.clock.monotonic() - began, "; ".join(faults) or "nothing is left")
        )

    def _keep(self, result: StepResult) -> None:
        self.results.append(result)
        self.tell(result)


def _why(error: BaseException) -> str:
    if isinstance(error, CallError):
        return str(describe_failure(error))
    if isinstance(error, TimeoutError):
        return "not done in time"
    if isinstance(error, asyncio.CancelledError):
        return "stopped"
    return str(error) or type(error).__name__
