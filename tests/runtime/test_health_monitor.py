"""Readiness follows what a process needs within five seconds, and what it can do without only degrades it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown, MigrationNeeded, Reason
from syncbeat_server.runtime.health_monitor import (
    CheckResult,
    CheckState,
    HealthCheck,
    HealthMonitor,
    HealthReport,
    HealthRule,
    Readiness,
)
from tests.support.fake_clock import FakeClock, settle, wait_until

pytestmark = pytest.mark.unit

QUICK = HealthRule(needed_every_s=0.02, timeout_s=0.05)


class Dependency:
    """A dependency as a check asks it: it answers, fails, or says nothing."""

    def __init__(self) -> None:
        self.fault: DependencyDown | MigrationNeeded | None = None
        self.state = CheckState.OK
        self.silent = False
        self.asked = 0

    async def ask(self) -> CheckResult:
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.fault is not None:
            raise self.fault
        return CheckResult(self.state, None if self.state is CheckState.OK else Reason.DEPENDENCY_DOWN, "as told")


class Stage:
    """A monitor of a store that is needed and of one that is not, which serves."""

    def __init__(self, rule: HealthRule, clock: FakeClock | None = None) -> None:
        self.needed, self.spare, self.failed = Dependency(), Dependency(), asyncio.Event()
        self.monitor = HealthMonitor(clock or SystemClock(), self.failed, rule)
        self.monitor.add(HealthCheck("needed", self.needed.ask, needed=True))
        self.monitor.add(HealthCheck("spare", self.spare.ask))
        self.told: list[Readiness] = []

    def note(self, report: HealthReport) -> None:
        self.told.append(report.readiness)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.monitor.run())
        self.monitor.start_serving()
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


def test_rule_tells_a_loss_within_five_seconds() -> None:
    rule = HealthRule()
    assert rule.needed_every_s + 2 * rule.timeout_s < 5.0, "one check may just have passed, and two tries fail"
    assert rule.every_s == 30.0
    assert rule.again_s < rule.every_s


async def test_process_is_ready_between_its_start_and_its_drain() -> None:
    stage = Stage(QUICK)
    assert stage.monitor.report.readiness is Readiness.NOT_READY
    with stage.monitor.followed(stage.note):
        stage.monitor.start_serving()
        assert stage.monitor.report.serves(["needed"])
        stage.monitor.drain()
    report = stage.monitor.report
    assert stage.told == [Readiness.NOT_READY, Readiness.READY, Readiness.NOT_READY]
    assert not report.serves(["needed"])
    assert report.fault is not None
    assert "drains" in report.fault.detail


async def test_loss_of_what_is_needed_is_told_and_its_return_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage = Stage(QUICK)
    async with stage.running():
        with stage.monitor.followed(stage.note):
            stage.needed.fault = MigrationNeeded("the database is older than this server")
            await wait_until(lambda: stage.told[-1] is Readiness.NOT_READY)
            fault = stage.monitor.report.fault
            assert fault == CheckResult(
                CheckState.DOWN, Reason.MIGRATION_NEEDED, "the database is older than this server"
            )
            assert not stage.monitor.report.serves(["needed"])
            assert stage.monitor.report.serves(["spare"]), "a service that does not need it goes on"
            stage.needed.fault = None
            await wait_until(lambda: stage.told[-1] is Readiness.READY)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("health_monitor")]
    assert told == ["health changed"] * 2


async def test_silence_of_what_is_needed_is_a_loss_and_holds_nobody_up() -> None:
    stage = Stage(QUICK)
    async with stage.running():
        stage.needed.silent = True
        await wait_until(lambda: not stage.monitor.report.ready)
        fault = (await stage.monitor.fresh_report()).fault
        assert fault is not None
        assert fault.reason is Reason.DEPENDENCY_DOWN
        stage.needed.silent = False
        await wait_until(lambda: stage.monitor.report.ready)


async def test_failed_call_makes_what_is_needed_be_asked_at_once() -> None:
    stage = Stage(HealthRule(needed_every_s=5.0))
    async with stage.running():
        await settle()
        assert stage.needed.asked == 1
        stage.needed.fault = DependencyDown("gone")
        assert (await stage.monitor.fresh_report()).ready, "it was asked a moment ago"
        stage.failed.set()
        assert not (await stage.monitor.fresh_report()).ready
        assert stage.needed.asked == 2
        assert not stage.failed.is_set()


async def test_what_is_not_needed_degrades_and_is_asked_more_often_while_it_does() -> None:
    clock = FakeClock()
    stage = Stage(HealthRule(needed_every_s=3_600.0), clock)
    async with stage.running():
        await settle()
        assert stage.spare.asked == 1
        stage.spare.state = CheckState.DEGRADED
        await clock.advance(29.0)
        assert stage.spare.asked == 1
        await clock.advance(1.0)
        assert stage.monitor.report.readiness is Readiness.DEGRADED
        assert stage.monitor.report.ready
        assert stage.monitor.report.passed == {"needed": True, "spare": False}
        await clock.advance(20.0)
        assert stage.spare.asked == 6
        stage.spare.state = CheckState.OK
        await clock.advance(5.0)
        assert all(stage.monitor.report.passed.values())
