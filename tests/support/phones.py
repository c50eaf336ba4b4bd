"""A device under test: a `SmartSync` over a real channel, on a clock that can be suspended and put back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from syncbeat import ClientRule, SmartSync, SyncBatch, SyncbeatClient
from syncbeat.client_options import DEFAULT_RULE
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from tests.support.client_servers import Scripted, client_of, scripted_server
from tests.support.fake_clock import FakeClock, settle, wait_until


class DeviceClock(FakeClock):
    """`true_s` is the time that has passed; what `monotonic` says may be behind it, and timers stand still at times."""

    def __init__(self) -> None:
        super().__init__()
        self.suspended_s = 0.0
        self.back_s = 0.0

    @property
    def true_s(self) -> float:
        """Seconds that have passed."""
        return self._elapsed_s + self.suspended_s

    def monotonic(self) -> float:
        """Return what the system says."""
        return self.true_s - self.back_s

    async def travel(self, seconds: float) -> None:
        """Stay awake for so long; each call that the device makes meanwhile ends before time goes on."""
        end_s = self._elapsed_s + seconds
        while self._elapsed_s < end_s:
            await self.quiet()
            due = [due_s for due_s, _, future in self._sleepers if not future.done()]
            await self.advance(max(0.0, min([*due, end_s]) - self._elapsed_s))
        await self.quiet()

    async def quiet(self) -> None:
        """Return when the device has nothing to do but wait.

        It may be waiting for a stream that opens, or for the next event of one, and that comes in real time: a test
        waits for it before it looks, and before it moves the clock past what it decides.
        """
        await settle()
        await wait_until(lambda: self.sleepers, what="the device still works")


def at(sequence: int, scope: str = "s", epoch: str = "e") -> core_pb2.ScopeCursor:
    """A place in a scope."""
    return core_pb2.ScopeCursor(scope=scope, epoch=epoch, sequence=sequence)


def row(sequence: int, scope: str = "s", epoch: str = "e") -> pb.Change:
    """A change."""
    return pb.Change(scope=scope, epoch=epoch, key=f"k{sequence}", value_json="1", sequence=sequence)


def hint(
    seconds: float, *heads: core_pb2.ScopeCursor, valid_s: float = 3_600, stream: bool = False, changed: bool = False
) -> pb.Hint:
    """Return what the server advises."""
    made = pb.Hint(heads=heads, prefer_stream=stream, changed=changed)
    made.poll_interval.FromMilliseconds(round(seconds * 1_000))
    made.valid_duration.FromMilliseconds(round(valid_s * 1_000))
    return made


def reported(seconds: float, *heads: core_pb2.ScopeCursor, **options: Any) -> pb.ReportActivityResponse:
    """The answer to a report."""
    return pb.ReportActivityResponse(hint=hint(seconds, *heads, **options))


def polled(seconds: float, *heads: core_pb2.ScopeCursor, **options: Any) -> pb.GetHintResponse:
    """The answer to a poll."""
    return pb.GetHintResponse(hint=hint(seconds, *heads, **options))


def page(*sequences: int, scope: str = "s", epoch: str = "e", **options: Any) -> pb.ListChangesResponse:
    """Changes up to the last of these."""
    changes = [row(sequence, scope, epoch) for sequence in sequences]
    return pb.ListChangesResponse(changes=changes, next_cursor=at(sequences[-1], scope, epoch), **options)


def reset(head: core_pb2.ScopeCursor, delay_s: int) -> pb.WatchHintsResponse:
    """A cursor that a stream cannot resume from."""
    made = streamed(reset=pb.Reset(scope=head.scope, head=head))
    made.reset.refetch_delay.FromSeconds(delay_s)
    return made


def streamed(**event: Any) -> pb.WatchHintsResponse:
    """An event of a stream."""
    return pb.WatchHintsResponse(**event)


class Phone:
    """A device whose app keeps what it is given, and may fail to."""

    def __init__(self, script: Scripted, client: SyncbeatClient, cursors: Iterable[core_pb2.ScopeCursor]) -> None:
        self.script = script
        self.client = client
        self.clock = DeviceClock()
        self.applied: list[SyncBatch] = []
        self.given = 0
        self.broken = 0
        self.sync = SmartSync(client, "phone", on_changes=self._apply, cursors=cursors, clock=self.clock)

    async def _apply(self, batch: SyncBatch) -> None:
        self.given += 1
        if self.broken:
            self.broken -= 1
            raise OSError("no room")
        self.applied.append(batch)

    @property
    def sequences(self) -> list[int]:
        """Of what was applied."""
        return [change.sequence for batch in self.applied for change in batch.changes]

    def count(self, method: str) -> int:
        """Return how often a method was called."""
        return len(self.script.attempts[method])

    def last(self, method: str) -> Any:
        """The request of its last call."""
        return self.script.attempts[method][-1].request


@asynccontextmanager
async def phone(
    *answers: pb.ReportActivityResponse,
    cursors: Iterable[core_pb2.ScopeCursor] = (),
    token: Any = "t",
    rule: ClientRule = DEFAULT_RULE,
) -> AsyncIterator[Phone]:
    """A device that is not started yet; `answers` are those to its reports."""
    async with scripted_server() as (script, address), client_of(address, token=token, rule=rule) as client:
        script.prepare("ReportActivity", *answers)
        yield Phone(script, client, cursors)
