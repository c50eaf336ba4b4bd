"""Tests the driver of a soak: what waits behind a stall is timed from its plan, and nothing grows without bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from syncbeat.v1 import sync_service_pb2 as sync
from syncbeat_devtools.soak.load.calls import Calls
from syncbeat_devtools.soak.load.driver import Driver, DriverRule
from syncbeat_devtools.soak.load.fleet import Fleet, User
from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.plan import Operation, Plan
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

STALL_S = 5.0


class ScriptedStream:
    """A stream that brings some messages at once, and then ends with OK or stays silent."""

    def __init__(self, messages: int, *, ends: bool) -> None:
        self.is_cancelled = False
        self._messages, self._ends = messages, ends

    async def __aiter__(self) -> AsyncIterator[sync.WatchHintsResponse]:
        while self._messages:
            self._messages -= 1
            yield sync.WatchHintsResponse()
        if not self._ends:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.is_cancelled = True


class OneAtATime(Calls):
    """A deployment that takes one call after the other, each in 1 ms, and stalls once."""

    def __init__(self, clock: FakeClock, stall_at_s: float = float("inf")) -> None:
        super().__init__((), clock, "life", lambda _age, _by_stream: None)
        self.fake_clock = clock
        self.polled_at: list[float] = []
        self.streams: list[ScriptedStream] = []
        self.messages, self.ends = 1, False
        self._stall_at_s = stall_at_s
        self._turn_of_one = asyncio.Lock()

    async def publish(self, scope: str, number: int) -> None:
        async with self._turn_of_one:
            if self.fake_clock.monotonic() >= self._stall_at_s:
                self._stall_at_s = float("inf")
                await self.fake_clock.sleep(STALL_S)
            await self.fake_clock.sleep(0.001)

    async def poll(self, user: User) -> sync.Hint:
        self.polled_at.append(self.fake_clock.monotonic())
        hint = sync.Hint()
        hint.poll_interval.FromSeconds(20)
        hint.valid_duration.FromSeconds(300)
        return hint

    def open_stream(self, user: User) -> ScriptedStream:
        self.streams.append(ScriptedStream(self.messages, ends=self.ends))
        return self.streams[-1]


def make_driver(
    calls: OneAtATime,
    shares: Sequence[tuple[Operation, float]],
    *,
    devices: int,
    max_in_flight: int = 1_000,
    stream_hold_s: float = 30.0,
) -> tuple[Driver, Recorder]:
    recorder = Recorder()
    fleet = Fleet("run", devices, polls=not shares)
    rule = DriverRule(duration_s=60.0, max_in_flight=max_in_flight, stream_hold_s=stream_hold_s)
    plan = Plan(10.0 if shares else 0.0, tuple(shares), seed=1)
    return Driver(plan, fleet, calls, recorder, calls.fake_clock, rule), recorder


async def drive(driver: Driver, clock: FakeClock, *, elapsed_s: float = 0.0) -> None:
    running = asyncio.ensure_future(driver.run(elapsed_s, asyncio.Event()))
    for _ in range(70):
        await clock.advance(1.0)
    await running


async def test_soak_times_calls_behind_a_stall_from_the_moment_of_their_plan() -> None:
    clock = FakeClock()
    driver, recorder = make_driver(OneAtATime(clock, stall_at_s=30.0), [(Operation.PUBLISH, 1.0)], devices=4)
    await drive(driver, clock)
    times = recorder.totals.tallies[Operation.PUBLISH].times
    # A call was due each 100 ms of the stall, so that 50 of 600 waited: a loop that waits itself would tell of one.
    assert times.count == 600
    waited = sum(count for index, count in times.sparse() if (times.quantile(0.5) or 0.0) < 0.01 and index > 300)
    assert 45 <= waited <= 55
    assert times.quantile(0.99) == pytest.approx(STALL_S, rel=0.2)


async def test_soak_calls_above_the_bound_in_flight_fail_and_are_not_kept() -> None:
    clock = FakeClock()
    calls = OneAtATime(clock, stall_at_s=30.0)
    driver, recorder = make_driver(calls, [(Operation.PUBLISH, 1.0)], devices=4, max_in_flight=10)
    await drive(driver, clock)
    tally = recorder.totals.tallies[Operation.PUBLISH]
    assert tally.calls == 600
    assert 35 <= tally.errors <= 45
    assert recorder.totals.causes == {"publish NOT_SENT": tally.errors}


async def test_soak_devices_ask_when_their_hint_says_and_not_before() -> None:
    clock = FakeClock()
    calls = OneAtATime(clock)
    driver, recorder = make_driver(calls, (), devices=3)
    await drive(driver, clock)
    # First over ten seconds, then 20 s after each hint.
    assert calls.polled_at == pytest.approx([0, 3.3, 6.7, 20, 23.3, 26.7, 40, 43.3, 46.7], abs=0.3)
    assert recorder.totals.tallies[Operation.POLL].errors == 0


async def test_soak_that_resumes_goes_on_with_its_plan_and_not_with_what_it_missed() -> None:
    clock = FakeClock()
    driver, recorder = make_driver(OneAtATime(clock), [(Operation.PUBLISH, 1.0)], devices=4)
    await drive(driver, clock, elapsed_s=50.0)
    assert recorder.totals.tallies[Operation.PUBLISH].calls == 100
    assert (recorder.totals.lateness.quantile(1.0) or 0.0) < 0.25


@pytest.mark.parametrize(
    ("messages", "ends", "errors"),
    [(0, False, 600), (0, True, 600), (1, False, 0), (1, True, 0)],
    ids=["silent", "ended", "held", "brought_one"],
)
async def test_soak_streams_without_a_first_message_fail_by_the_servers_fault(
    messages: int, ends: bool, errors: int
) -> None:
    clock = FakeClock()
    calls = OneAtATime(clock)
    calls.messages, calls.ends = messages, ends
    driver, recorder = make_driver(calls, [(Operation.STREAM, 1.0)], devices=4, stream_hold_s=0.0)
    await drive(driver, clock)
    tally = recorder.totals.tallies[Operation.STREAM]
    assert (tally.calls, tally.errors, tally.faults) == (600, errors, errors)
    assert recorder.totals.causes == ({"stream NO_MESSAGE": errors} if errors else {})
    assert all(stream.is_cancelled for stream in calls.streams)


async def test_soak_streams_that_are_silent_at_its_end_fail_unless_they_are_young() -> None:
    clock = FakeClock()
    calls = OneAtATime(clock)
    calls.messages = 0
    driver, recorder = make_driver(calls, [(Operation.STREAM, 1.0)], devices=4, stream_hold_s=3_600.0)
    await drive(driver, clock)
    tally = recorder.totals.tallies[Operation.STREAM]
    assert tally.calls == tally.faults == pytest.approx(550, abs=15)
    assert recorder.totals.causes == {"stream NO_MESSAGE": tally.calls}
