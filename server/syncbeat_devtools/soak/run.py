"""Runs a soak: prepares the fleet, drives it, keeps its records safe, and writes the report."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from syncbeat import SyncbeatClient
from syncbeat_devtools.soak.load.calls import Calls
from syncbeat_devtools.soak.load.driver import Driver, DriverRule
from syncbeat_devtools.soak.load.fleet import Fleet
from syncbeat_devtools.soak.load.scrape import Scraper
from syncbeat_devtools.soak.load.server_verdict import ask_server
from syncbeat_devtools.soak.measure.recorder import Recorder
from syncbeat_devtools.soak.measure.state_file import read_state, replace_file, write_state
from syncbeat_devtools.soak.plan import Operation, make_plan
from syncbeat_devtools.soak.report.document import Circumstances, make_document
from syncbeat_devtools.soak.report.page import render_page
from syncbeat_devtools.soak.report.progress import progress_line, summary
from syncbeat_devtools.soak.request import SoakRequest, check_request
from syncbeat_devtools.soak.verdict.judge import judge_window, window_s, worst
from syncbeat_devtools.soak.verdict.objectives import Verdict
from syncbeat_server import __version__
from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.errors import ConfigurationError, DependencyDown
from syncbeat_server.rpc.deployment import CallError, Deployment, describe_failure, open_client

EXIT_OF = {Verdict.OK: 0, Verdict.WARN: 3, Verdict.ROLLBACK: 4}
"""The exit status of each verdict; 1 is a run that could not be made, 2 a wrong option."""

STATE, REPORT, PAGE = "state.json", "report.json", "report.html"
_TICK_S = 1.0
_POINTS_A_RUN = 240
_LEAST_SCRAPE_S, _MOST_SCRAPE_S = 1.0, 60.0
_LAST_PUSHES_S = 15.0
_LARGEST_REPORT = 64 << 20


@dataclass
class _Life:
    """One life of a run: what it was asked for, and where it goes on."""

    run: dict[str, Any]
    elapsed_s: float
    recorder: Recorder


def soak(deployment: Deployment, request: SoakRequest) -> int:
    """Run a soak and write its report; return the exit status of its verdict, or 130 if it was stopped before its end.

    Raises:
        ConfigurationError: the request contradicts itself, or one of its files cannot be used.
        DependencyDown: the fleet could not be prepared.
    """
    check_request(request)
    earlier = None if request.compare is None else _read_report(request.compare)
    clock = SystemClock()
    life = _begin(request, clock)
    return asyncio.run(_soak(deployment, request, life, earlier, clock))


def _begin(request: SoakRequest, clock: Clock) -> _Life:
    state = request.out / STATE
    if request.resume:
        run, elapsed_s, recorder = read_state(state)
        if changed := [name for name, value in request.as_run().items() if run.get(name) != value]:
            raise ConfigurationError(f"soak: --resume: the run had other options: {', '.join(changed)}")
        run["lives"] += 1
        return _Life(run, elapsed_s, recorder)
    if state.exists():
        raise ConfigurationError(
            f"soak: {state}: a run was not finished: --resume goes on with it, --out starts another"
        )
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"soak: --out: {request.out}: {error.strerror}") from None
    run = {
        **request.as_run(),
        "run_id": uuid.uuid4().hex[:12],
        "started": clock.now().isoformat(timespec="seconds"),
        "lives": 1,
    }
    return _Life(run, 0.0, Recorder())


async def _soak(
    deployment: Deployment, request: SoakRequest, life: _Life, earlier: Mapping[str, Any] | None, clock: Clock
) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(open_client(deployment, app_id=request.app_id))
        clients = [
            await stack.enter_async_context(open_client(deployment, app_id=request.app_id, repeats=False))
            for _ in range(request.connections)
        ]
        fleet = Fleet(life.run["run_id"], request.devices, polls=request.shares[Operation.POLL] > 0)
        recorder = life.recorder
        driver: Driver | None = None

        def note_age(seconds: float, by_stream: bool) -> None:
            if driver is not None:
                recorder.staleness(driver.elapsed_s, seconds, by_stream=by_stream)

        calls = Calls(clients, clock, f"{life.run['run_id']}/{life.run['lives']}", note_age)
        rule = DriverRule(request.duration_s, request.max_in_flight, request.stream_hold_s)
        plan = make_plan(request.rate, request.shares, request.seed)
        driver = Driver(plan, fleet, calls, recorder, clock, rule)
        write_state(request.out / STATE, life.run, life.elapsed_s, recorder)
        _say(f"soak: {len(fleet.users):,} devices, {plan.per_second:g} other calls a second; preparing")
        await _prepare(fleet, backend, stop)
        scraper = Scraper(request.metrics)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        watching = asyncio.ensure_future(_watch(request, life, driver, scraper, session, clock))
        try:
            await driver.run(life.elapsed_s, stop)
        finally:
            elapsed_s = min(driver.elapsed_s, request.duration_s)
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            _save(request, life, driver, elapsed_s)
        if stop.is_set() and elapsed_s < request.duration_s:
            _say(f"soak: stopped after {elapsed_s:.0f} s; --resume goes on, and the users stay until its end")
            return 130
        await driver.checks.finish(_LAST_PUSHES_S)
        server = await ask_server(backend, window_s(request.duration_s))
        left = 0 if request.keep_users else await fleet.remove(backend)
        about = Circumstances(
            __version__,
            deployment.address,
            life.run,
            life.run["started"],
            clock.now().isoformat(timespec="seconds"),
            elapsed_s,
            life.run["lives"],
            scraper.failures,
            left,
        )
        document = make_document(
            recorder, request.objectives, about, server, earlier=earlier, heed_server=request.heed_server
        )
        return _finish(request, document)


async def _prepare(fleet: Fleet, backend: SyncbeatClient, stop: asyncio.Event) -> None:
    """Prepare the fleet, unless `stop` is set before it is done."""
    preparing, stopping = asyncio.ensure_future(fleet.prepare(backend)), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((preparing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            await preparing
    except* CallError as errors:
        raise DependencyDown(f"soak: the fleet could not be prepared: {_first(errors)}") from None
    finally:
        for task in (preparing, stopping):
            task.cancel()
        await asyncio.gather(preparing, stopping, return_exceptions=True)


def _finish(request: SoakRequest, document: Mapping[str, Any]) -> int:
    replace_file(request.out / REPORT, json.dumps(document, indent=1) + "\n")
    replace_file(request.out / PAGE, render_page(document))
    (request.out / STATE).unlink()
    print(summary(document), flush=True)
    return EXIT_OF[Verdict[document["verdict"]]]


async def _watch(
    request: SoakRequest,
    life: _Life,
    driver: Driver,
    scraper: Scraper,
    session: aiohttp.ClientSession,
    clock: Clock,
) -> None:
    """Read the servers' figures, judge the last window, show progress and save, each when it is due."""
    recorder = life.recorder
    scrape_s = min(_MOST_SCRAPE_S, max(_LEAST_SCRAPE_S, request.duration_s / _POINTS_A_RUN))
    scraped_at = shown_at = saved_at = float("-inf")
    while True:
        now_s = clock.monotonic()
        if scraper.urls and now_s - scraped_at >= scrape_s:
            scraped_at = now_s
            rss, cpu_s = await scraper.read(session)
            point = recorder.series.at(driver.elapsed_s)
            point.rss_octets = point.rss_octets if rss is None else rss
            point.cpu_s += cpu_s
        verdict = worst(judge_window(recorder.series, request.objectives, request.duration_s))
        recorder.verdict(driver.elapsed_s, verdict.name)
        if now_s - shown_at >= request.progress_s:
            shown_at = now_s
            _say(progress_line(recorder, driver.elapsed_s, request.duration_s, driver.in_flight, driver.open_streams))
        if now_s - saved_at >= request.save_every_s:
            saved_at = now_s
            _save(request, life, driver, driver.elapsed_s)
        await clock.sleep(_TICK_S)


def _save(request: SoakRequest, life: _Life, driver: Driver, elapsed_s: float) -> None:
    """Save the records, or say that they could not be: a disk that is full for a moment ends no run of days."""
    life.recorder.open_pushes = driver.checks.open_pushes()
    try:
        write_state(request.out / STATE, life.run, elapsed_s, life.recorder)
    except OSError as error:
        _say(f"soak: {request.out / STATE}: the records could not be saved: {error.strerror or error}")


def _read_report(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_REPORT:
            raise ConfigurationError(f"soak: --compare: {path}: is not a report of a soak")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != 1 or "operations" not in found:
            raise ConfigurationError(f"soak: --compare: {path}: is not a report of a soak")
        return found
    except OSError as error:
        raise ConfigurationError(f"soak: --compare: {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"soak: --compare: {path}: is not a report of a soak") from None


def _first(errors: BaseException) -> str:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return str(describe_failure(errors)) if isinstance(errors, CallError) else str(errors)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
