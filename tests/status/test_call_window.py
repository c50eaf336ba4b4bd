"""Tests the readings over which rates are taken: as far back as the window, and no more of them than fit into it."""

from __future__ import annotations

import asyncio

import pytest

from syncbeat_server.ops.metrics.rpc import CallCounts
from syncbeat_server.status.call_window import CallWindow, WindowRule
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

RULE = WindowRule(window_s=60.0, every_s=10.0)


class Counters:
    """Counters that go up with each call and message."""

    def __init__(self) -> None:
        self.calls = self.signals = self.readings = 0

    def read(self) -> dict[str, CallCounts]:
        self.readings += 1
        return {"method": CallCounts({"OK": self.calls}, (self.calls,))}

    def window(self, clock: FakeClock) -> CallWindow:
        return CallWindow(clock, self.read, lambda: self.signals, RULE)


async def test_call_window_begins_with_the_process() -> None:
    clock, counters = FakeClock(), Counters()
    window = counters.window(clock)
    counters.calls = 3
    await clock.advance(4.0)
    first, last, span_s = window.ends()
    assert (first.calls["method"].codes, last.calls["method"].codes, span_s) == ({"OK": 0}, {"OK": 3}, 4.0)


async def test_call_window_forgets_what_is_older() -> None:
    clock, counters = FakeClock(), Counters()
    window = counters.window(clock)
    running = asyncio.ensure_future(window.run())
    try:
        counters.calls = counters.signals = 1_000
        for _ in range(600):
            await clock.advance(1.0)
            counters.calls += 1
            counters.signals += 2
        first, last, span_s = window.ends()
        assert 50.0 <= span_s <= RULE.window_s
        assert last.calls["method"].codes["OK"] - first.calls["method"].codes["OK"] == pytest.approx(span_s, abs=1)
        assert last.signals - first.signals == pytest.approx(2 * span_s, abs=2)
        assert len(window._readings) <= 7
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_call_window_reads_in_the_background_and_when_asked() -> None:
    clock, counters = FakeClock(), Counters()
    window = counters.window(clock)
    running = asyncio.ensure_future(window.run())
    try:
        await clock.advance(60.0)
        assert counters.readings == 1 + 6
        window.ends()
        assert counters.readings == 1 + 6 + 1
    finally:
        running.cancel()
        await asyncio.wait([running])
