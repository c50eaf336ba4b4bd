"""Pushes from SendNotification to recorded SENT, through the fake FCM over HTTP; server, worker and fake apart."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import asyncpg

from bench import h2load
from bench.figure import Figure, Options, say
from bench.processes import COMMAND, running
from bench.stage import SEND, SERVICE_TOKEN, Cpu, add_users, call, migrated_stores, our_server
from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.providers.fcm import AccessTokens

_USERS = 1_000
_CALLS = 2
_LOOK_S = 0.02
_TIMEOUT_S = 120.0


def measure(options: Options) -> Figure:
    """Deliveries a second. The baseline is the fake's own ceiling: sends a second by h2load, null without it."""
    users = [f"user-{number:05}" for number in range(_USERS)]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="syncbeat-bench-"))
        credentials = Path(folder, "account.json")
        fake = stack.enter_context(
            running([*COMMAND, "fake-fcm", "--credentials", str(credentials)], "fake-fcm: serving on")
        )
        stores = stack.enter_context(migrated_stores())
        add_users(stores, users, pushable=True)
        fcm = {"SYNCBEAT_FCM_CREDENTIALS": str(credentials), "SYNCBEAT_FCM_BASE_URL": fake.address}
        server = stack.enter_context(our_server(stores, "rpc", **fcm))
        worker = stack.enter_context(our_server(stores, "worker", **fcm))
        rates, ceilings, costs, database_costs = [], [], [], []
        for number in range(1, options.rounds + 1):
            before = Cpu.now(worker.pid, stores.pids[0])
            count, took = asyncio.run(_push(stores.app_url, server.address, users))
            used, used_by_database = Cpu.now(worker.pid, stores.pids[0]).since(before)
            rates.append(count / took)
            costs.append(used / count * 1e6)
            database_costs.append(used_by_database / count * 1e6)
            if h2load.installed():
                ceilings.append(_ceiling(fake.address, credentials, options.seconds))
            said = f"{ceilings[-1]:,.0f}" if ceilings else "no h2load"
            say(f"push_delivered_per_s: round {number}/{options.rounds}: {rates[-1]:,.0f}/s; the fake alone: {said}")
    return Figure(
        name="push_delivered_per_s",
        unit="deliveries/s",
        value=median(rates),
        baseline=median(ceilings) if ceilings else None,
        runs=[list(run) for run in (zip(rates, ceilings, strict=True) if ceilings else zip(rates))],
        notes={
            "baseline_is": "the fake FCM's own ceiling, by h2load over HTTP/1.1",
            "h2load": bool(ceilings),
            "worker_cpu_us_per_delivery": round(median(costs), 1),
            "database_cpu_us_per_delivery": round(median(database_costs), 1),
            "deliveries_each_round": _USERS * _CALLS,
            "fsync": False,
        },
    )


async def _push(database_url: str, address: str, users: list[str]) -> tuple[int, float]:
    # Counted in the database, where SENT is recorded.
    connection = await asyncpg.connect(database_url)
    try:
        before = await _sent(connection)
        started = time.perf_counter()
        accepted = 0
        for _ in range(_CALLS):
            answer = await asyncio.to_thread(call, address, SEND, _request(users), SERVICE_TOKEN)
            accepted += push_service_pb2.SendNotificationResponse.FromString(answer).delivery_count
        assert accepted == _USERS * _CALLS
        async with asyncio.timeout(_TIMEOUT_S):
            while await _sent(connection) < before + accepted:  # noqa: ASYNC110  # another process sends
                await asyncio.sleep(_LOOK_S)
        return accepted, time.perf_counter() - started
    finally:
        await connection.close()


async def _sent(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM deliveries WHERE state = 'SENT'"))


def _request(users: list[str]) -> bytes:
    notification = core_pb2.Notification(title="Anna", body="is reading page 12 with you")
    return push_service_pb2.SendNotificationRequest(
        user_ids=core_pb2.UserIds(ids=users), notification=notification
    ).SerializeToString()


def _ceiling(url: str, credentials: Path, seconds: float) -> float:
    tokens = AccessTokens(credentials, SystemClock())
    headers = [("authorization", f"Bearer {asyncio.run(tokens.current())}"), ("content-type", "application/json")]
    message = {"message": {"token": "token-of-user-00000", "notification": {"title": "Anna", "body": "is reading"}}}
    target = f"{url}/v1/projects/{tokens.project_id}/messages:send"
    return h2load.run_http1(target, json.dumps(message).encode(), headers, seconds).per_second
