"""Tests GetSloReport over the wire: counts of two processes, verdicts, an outage that comes and goes, who may ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import asyncpg
import pytest

from syncbeat.v1 import directory_service_pb2, sync_service_pb2
from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import BACKEND, OPERATOR, Server, entry, running_server

pytestmark = pytest.mark.rpc

REPORT = pb.GetSloReportRequest()
DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
OK, WARN, ROLLBACK = pb.SLO_VERDICT_OK, pb.SLO_VERDICT_WARN, pb.SLO_VERDICT_ROLLBACK
# An hour is as short as it may be, and a share of few calls is judged.
SHORT = {"SLO_WINDOW_SCALE": "0.001", "SLO_LEAST_EVENTS": "5"}
DEADLOCKED = """
CREATE FUNCTION raise_deadlock() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'planted' USING ERRCODE = '40P01'; END $$;
CREATE TRIGGER plant BEFORE INSERT OR UPDATE ON preferences FOR EACH STATEMENT EXECUTE FUNCTION raise_deadlock()
"""


async def report(server: Server, matches: Callable[[Any], bool] = bool, request: Any = REPORT) -> Any:
    """Return the report once it is as wanted."""

    async def found() -> Any:
        answer = await server.backend(request)
        return answer if matches(answer) else None

    return await wait_until(found, 40.0)


def verdict(answer: Any, name: str) -> Any:
    return next(one.verdict for one in answer.triggers if one.name == name)


async def hint(server: Server, count: int) -> None:
    for _ in range(count):
        await server.user("ann")(sync_service_pb2.GetHintRequest(device_id="phone"))


async def test_report_adds_the_calls_of_all_processes_up(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with running_server(database_urls, redis_url) as one:
        await one.register("ann", "phone")
        await hint(one, 20)
        # What a process counted is written when it ends, at the latest.
        async with running_server(database_urls, redis_url) as two:
            await hint(two, 30)
        answer = await report(one)
        assert answer.workload.hints == 50
        assert 51 <= answer.workload.calls <= 55
        assert answer.workload.errors == 0
        assert 0 < answer.workload.hint_p95.ToMicroseconds() <= 10_000_000
        assert answer.workload.cpu_per_call.ToMicroseconds() > 0
        assert {one.name: one.error_budget_remaining for one in answer.objectives}["availability"] == 1.0
        assert answer.HasField("report_time")
    async with running_server(database_urls, redis_url) as later:
        assert (await report(later)).workload.hints == 50, "they outlive every process"


async def test_report_names_each_trigger_with_thresholds(server: Server) -> None:
    answer = await report(server)
    triggers = {one.name: one for one in answer.triggers}
    assert (answer.verdict, {one.verdict for one in answer.triggers}) == (OK, {OK})
    expected = {"database_down", "errors", "sync_failures", "push_accepted", "staleness", "hint_p95", "call_p95"}
    expected |= {"pool", "pool_sustained", "database_latency", "database_latency_sustained", "deadlocks"}
    expected |= {
        f"{objective}_{pair}"
        for objective in ("availability", "errors", "hint_latency", "call_latency", "push_accepted", "staleness")
        for pair in ("fast_burn", "medium_burn", "slow_burn")
    }
    assert triggers.keys() == expected
    errors, pool = triggers["errors"], triggers["pool"]
    assert (errors.warn_threshold, errors.rollback_threshold, errors.unit) == (0.005, 0.02, "ratio")
    assert errors.HasField("events")
    assert (pool.warn_threshold, pool.rollback_threshold, pool.window.seconds) == (0.8, float("inf"), 300)
    assert not pool.HasField("events")
    assert not triggers["database_down"].HasField("window")


async def test_report_is_about_the_window_that_was_asked_for(server: Server) -> None:
    request = pb.GetSloReportRequest()
    request.window.FromSeconds(60)
    answer = await report(server, request=request)
    assert {one.window.seconds for one in answer.triggers if one.name == "errors"} <= {0, 60}
    assert answer.window.seconds <= 60
    for wrong in (59, 2_592_001):
        request.window.FromSeconds(wrong)
        assert (await server.backend.refusal(request)).fields == ("window",)


async def test_outage_turns_the_report_to_rollback_and_back(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with running_server(database_urls, redis_url, Role.RPC, PATIENT, **SHORT) as server:
        await server.register("ann", "phone")
        assert (await report(server, lambda one: one.verdict == OK)).verdict == OK
        stores.kill_postgres()
        try:
            down = await report(server, lambda one: verdict(one, "database_down") == ROLLBACK)
            assert down.verdict == ROLLBACK
            for _ in range(20):
                await server.user("bob").refusal(sync_service_pb2.GetHintRequest(device_id="phone"))
        finally:
            stores.start_postgres()
        back = await report(server, lambda one: verdict(one, "database_down") == OK)
        assert (back.verdict, verdict(back, "errors")) == (ROLLBACK, ROLLBACK), "the failures of the hour"
        assert (await report(server, lambda one: one.verdict == OK)).verdict == OK
        budgets = {one.name: one.error_budget_remaining for one in back.objectives}
        assert budgets["availability"] < 0, "spent, for thirty days that are 43 minutes here"


async def test_calls_that_the_database_refuses_under_load_spend_the_availability(
    database_urls: DatabaseUrls, redis_url: str, free_port: int
) -> None:
    ops = f"127.0.0.1:{free_port}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        await server.register("ann", "phone")
        conn = await asyncpg.connect(database_urls.admin_url)
        await conn.execute(DEADLOCKED)
        for number in range(3):
            refusal = await server.user("ann").refusal(
                directory_service_pb2.SetPreferencesRequest(user_id="ann", max_per_day=number + 1)
            )
            assert refusal.told == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        await conn.execute("DROP FUNCTION raise_deadlock() CASCADE")
        await conn.close()
        answer = await report(server)
        async with aiohttp.ClientSession() as session, session.get(f"http://{ops}/metrics") as page:
            metrics = await page.text()
    budgets = {one.name: one.error_budget_remaining for one in answer.objectives}
    assert budgets["availability"] < 0, "three of fewer than a dozen calls"
    assert budgets["errors"] == 1.0
    labels = 'grpc_method="SetPreferences",grpc_service="syncbeat.v1.DirectoryService"'
    assert f"syncbeat_calls_overloaded_total{{{labels}}} 3.0" in metrics


async def test_report_counts_figures_that_were_put(database_urls: DatabaseUrls, redis_url: str) -> None:
    conn = await asyncpg.connect(database_urls.app_url)
    try:
        await conn.execute("INSERT INTO slo_figures VALUES ('complaints', 7, syncbeat_now()), ('other', 1, now())")
    finally:
        await conn.close()
    async with running_server(database_urls, redis_url, SLO_FIGURES="complaints>5>20,score<4<3") as server:
        answer = await report(server)
        told = {one.name: one.verdict for one in answer.triggers}
        assert (told["complaints"], answer.verdict) == (WARN, WARN)
        assert not told.keys() & {"other", "score"}


async def test_report_shows_budgets_in_the_metrics(database_urls: DatabaseUrls, redis_url: str, free_port: int) -> None:
    listen = f"127.0.0.1:{free_port}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=listen, SLO_WINDOW_SCALE="0.001"):

        async def shown() -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
            writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = (await reader.read()).decode()
            writer.close()
            wanted = ('syncbeat_slo_error_budget_remaining_ratio{objective="errors"} 1.0',)
            return all(line in text for line in (*wanted, 'syncbeat_slo_burn_rate{objective="errors",window="5m"} 0.0'))

        await wait_until(shown)


async def test_report_is_for_services_that_may_call_it(database_urls: DatabaseUrls, redis_url: str) -> None:
    tokens = f"{entry('may', 't1', 'GetSloReport')},{entry('other', 't2', 'GetHint')},{entry('backend', BACKEND)}"
    async with running_server(database_urls, redis_url, SERVICE_TOKENS=tokens) as server:
        assert (await server.bearer("t1")(REPORT)).verdict == OK
        for token in ("t2", OPERATOR):
            assert (await server.bearer(token).refusal(REPORT)).told == DENIED
        assert (await server.user("ann").refusal(REPORT)).told == DENIED
        assert (await server.bearer("t1").refusal(pb.GetSloReportRequest(app_id="no-such"))).told == DENIED
