"""Tests how a soak finds what became of pushes: also of those that nobody delivers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from syncbeat_devtools.soak.load.push_checks import PushChecks
from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.measure.state_file import read_state, write_state
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

LIMIT_S = 15.0


class Deliveries:
    """Answers the states of notifications, by id, each of one delivery; those that it does not know are pending."""

    def __init__(self, states: Mapping[str, str]) -> None:
        self.states = dict(states)

    async def look(self, notification_id: str) -> dict[str, int]:
        return {self.states.get(notification_id, "PENDING"): 1}


async def finish(checks: PushChecks, clock: FakeClock) -> None:
    finishing = asyncio.ensure_future(checks.finish(LIMIT_S))
    for _ in range(round(LIMIT_S) + 1):
        await clock.advance(1.0)
    await finishing


async def test_pushes_that_nobody_delivers_count_in_the_state_that_they_wait_in() -> None:
    clock, states = FakeClock(), Counter[str]()
    checks = PushChecks(Deliveries({"sent": "SENT"}).look, states, clock)
    for name in ("one", "two", "sent"):
        checks.add(name)
    await finish(checks, clock)
    assert states == {"PENDING": 2, "SENT": 1}


async def test_pushes_that_end_shortly_before_the_limit_count_as_ended() -> None:
    clock, states = FakeClock(), Counter[str]()
    deliveries = Deliveries({})
    checks = PushChecks(deliveries.look, states, clock)
    checks.add("late")
    finishing = asyncio.ensure_future(checks.finish(LIMIT_S))
    await clock.advance(12.0)
    deliveries.states["late"] = "SENT"
    await clock.advance(LIMIT_S - 12.0 + 0.5)
    await finishing
    assert states == {"SENT": 1}


async def test_a_push_that_waits_does_not_keep_later_ones_from_their_first_look() -> None:
    clock, states = FakeClock(), Counter[str]()
    checks = PushChecks(Deliveries({"later": "SENT"}).look, states, clock)
    checks.add("waits")
    running = asyncio.ensure_future(checks.run())
    await clock.advance(6.0)
    checks.add("later")
    await clock.advance(6.0)
    assert states == {"SENT": 1}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_push_whose_look_is_cancelled_by_the_end_of_the_run_is_looked_at_again() -> None:
    clock, states = FakeClock(), Counter[str]()
    deliveries = Deliveries({"one": "SENT"})
    began = asyncio.Event()

    async def look(notification_id: str) -> dict[str, int]:
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()
        return await deliveries.look(notification_id)

    checks = PushChecks(look, states, clock)
    checks.add("one")
    running = asyncio.ensure_future(checks.run())
    await clock.advance(6.0)
    assert began.is_set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await finish(checks, clock)
    assert states == {"SENT": 1}


async def test_pushes_that_are_open_when_a_run_is_killed_count_in_its_next_life(tmp_path: Path) -> None:
    clock, recorder, path = FakeClock(), Recorder(), tmp_path / "state.json"
    checks = PushChecks(Deliveries({}).look, recorder.totals.push_states, clock)
    checks.add("seen to wait")
    running = asyncio.ensure_future(checks.run())
    await clock.advance(6.0)
    checks.add("new")
    recorder.open_pushes = checks.open_pushes()
    write_state(path, {}, 6.0, recorder)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    clock = FakeClock()
    _, _, recorder = read_state(path)
    states = recorder.totals.push_states
    checks = PushChecks(Deliveries({"new": "SENT"}).look, states, clock, recorder.open_pushes)
    running = asyncio.ensure_future(checks.run())
    await clock.advance(1.0)
    assert states == {"SENT": 1}
    await clock.advance(120.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert states == {"SENT": 1, "PENDING": 1}, "given up after two minutes of both lives together"
    assert checks.open_pushes() == []
