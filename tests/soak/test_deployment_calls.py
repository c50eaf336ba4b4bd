"""Tests the calls of smoke and soak to a deployment: its own verdict, and calls that are not repeated."""

from __future__ import annotations

import json
from math import inf, nan

import grpc
import pytest

from syncbeat.v1 import ops_service_pb2 as ops
from syncbeat.v1 import sync_service_pb2 as sync
from syncbeat_devtools.soak.load.server_verdict import ask_server
from syncbeat_devtools.soak.verdict.objectives import Verdict
from syncbeat_server.rpc.deployment import CallError, Deployment, describe_failure, open_client
from tests.support.client_servers import Refusal, scripted_server

pytestmark = pytest.mark.rpc

TRIGGER = ops.SloTrigger(name="errors", verdict=ops.SLO_VERDICT_WARN, value=0.01, warn_threshold=0.005, unit="ratio")


async def test_soak_takes_the_verdict_that_a_server_serves() -> None:
    async with scripted_server() as (script, address):
        script.prepare(
            "GetSloReport",
            ops.GetSloReportResponse(verdict=ops.SLO_VERDICT_WARN, triggers=[TRIGGER]),
            Refusal(grpc.StatusCode.UNIMPLEMENTED),
            ops.GetSloReportResponse(),
        )
        async with open_client(Deployment(address, "token", tls=False)) as client:
            served = await ask_server(client, 10.0)
            assert served.verdict is Verdict.WARN
            assert served.triggers[0]["name"] == "errors"
            assert served.triggers[0]["verdict"] == "WARN"
            unserved = await ask_server(client, 365 * 86_400.0)
            assert (unserved.verdict, unserved.why) == (None, "UNIMPLEMENTED: refused")
            assert (await ask_server(client, 600.0)).why == "the server answers UNSPECIFIED"
        # As the contract bounds it: a minute to 30 days.
        windows = [attempt.request.window.seconds for attempt in script.attempts["GetSloReport"]]
        assert windows == [60, 30 * 86_400, 600]


async def test_soak_report_has_no_number_that_json_lacks() -> None:
    odd = ops.SloTrigger(name="odd", verdict=ops.SLO_VERDICT_OK, value=nan, warn_threshold=-inf, rollback_threshold=inf)
    async with scripted_server() as (script, address):
        script.prepare("GetSloReport", ops.GetSloReportResponse(verdict=ops.SLO_VERDICT_OK, triggers=[odd]))
        async with open_client(Deployment(address, "token", tls=False)) as client:
            served = await ask_server(client, 60.0)
    trigger = json.loads(json.dumps(served.triggers, allow_nan=False))[0]
    assert [trigger[name] for name in ("value", "warn_threshold", "rollback_threshold")] == [None, None, None]


async def test_soak_calls_are_not_repeated_so_that_each_failure_shows() -> None:
    async with scripted_server() as (script, address):
        refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "OVERLOADED", retry_after_s=0.01)
        script.prepare("GetHint", refusal, refusal, sync.GetHintResponse())
        deployment = Deployment(address, "token", tls=False)
        async with open_client(deployment, repeats=False) as client:
            with pytest.raises(CallError) as failed:
                await client.sync.GetHint(sync.GetHintRequest(device_id="phone"))
            failure = describe_failure(failed.value)
            assert (failure.code, failure.reason) == ("UNAVAILABLE", "OVERLOADED")
            assert failure.is_server_fault
            assert len(script.attempts["GetHint"]) == 1
        async with open_client(deployment) as client:
            await client.sync.GetHint(sync.GetHintRequest(device_id="phone"))
            assert len(script.attempts["GetHint"]) == 3
