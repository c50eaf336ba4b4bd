"""Tests what a soak does beside its load: its records are kept as soon as the disk takes them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from syncbeat_devtools.soak.load.calls import Calls
from syncbeat_devtools.soak.load.driver import Driver, DriverRule
from syncbeat_devtools.soak.load.fleet import Fleet
from syncbeat_devtools.soak.load.scrape import Scraper
from syncbeat_devtools.soak.measure.recorder import OpenPush, Recorder
from syncbeat_devtools.soak.measure.state_file import read_state
from syncbeat_devtools.soak.plan import DEFAULT_SHARES, Plan
from syncbeat_devtools.soak.request import SoakRequest
from syncbeat_devtools.soak.run import STATE, _Life, _watch
from syncbeat_devtools.soak.verdict.objectives import Objectives
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


def make_request(out: Path) -> SoakRequest:
    return SoakRequest(
        duration_s=600.0,
        rate=1.0,
        shares=DEFAULT_SHARES,
        devices=1,
        stream_hold_s=30.0,
        max_in_flight=10,
        connections=1,
        seed=1,
        objectives=Objectives(),
        out=out,
    )


async def test_soak_goes_on_when_its_records_cannot_be_saved_and_saves_them_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    clock, recorder = FakeClock(), Recorder()
    calls = Calls((), clock, "life", lambda _age, _by_stream: None)
    fleet, rule = Fleet("run", 1, polls=False), DriverRule(600.0, 10, 30.0)
    recorder.open_pushes = [OpenPush("id", 12.5, {"PENDING": 2})]
    driver = Driver(Plan(0.0, (), seed=1), fleet, calls, recorder, clock, rule)
    recorder.open_pushes = []
    life = _Life({"run_id": "run"}, 0.0, recorder)
    async with aiohttp.ClientSession() as session:
        watching = asyncio.ensure_future(_watch(make_request(out), life, driver, Scraper(()), session, clock))
        await clock.advance(5.0)
        assert not watching.done()
        assert "the records could not be saved" in capsys.readouterr().err
        out.mkdir()
        await clock.advance(30.0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    run, elapsed_s, saved = read_state(out / STATE)
    assert [one.notification_id for one in saved.open_pushes] == ["id"], "which the driver goes on with"
    assert run == {"run_id": "run"}
    assert elapsed_s == pytest.approx(30.0, abs=1.0)
