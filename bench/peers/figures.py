"""Figures of peers: each runs ours and the peer in turns, on new stores and processes."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median

import asyncpg

from bench import raw_load
from bench.echo_server import STREAM
from bench.figure import Better, Figure, Options, Round, measure_pairs, report_progress
from bench.peers import centrifugo, tools
from bench.peers.receiver import Receiver
from bench.processes import cpu_between, cpu_s, rss_kb
from bench.push_stage import USERS, PushStage, push_stage
from bench.stage import (
    PUBLISH,
    SERVICE_TOKEN,
    Cpu,
    add_users,
    call,
    measure_load,
    migrated_stores,
    our_server,
    user_token,
)
from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_server.clock import SystemClock
from syncbeat_server.push.providers.fcm import AccessTokens

_CHANNELS = 100
_CALLS_A_SECOND = 800
_STREAMS = 1_000
_PER_CONNECTION = 50
_PUBLISHES = 5
_MOST_ROUNDS = 3
_PUSHES = 2_000
_SCOPE = "everybody"


def publish(options: Options) -> Figure:
    """Measure publishes per second over gRPC, 64 at once, by the same generator."""
    numbers = count()
    with centrifugo.running_centrifugo() as peer, migrated_stores() as stores, our_server(stores) as server:

        def ours() -> Round:
            calls = [(SERVICE_TOKEN, _change(next(numbers))) for _ in range(_calls(options))]
            warm_up = SERVICE_TOKEN, _change(0, request_id="")
            return measure_load(server, stores.pids[0], lambda: raw_load.run(server.address, PUBLISH, warm_up, calls))

        def theirs() -> Round:
            calls = [("", _publication(next(numbers))) for _ in range(_calls(options))]
            before = cpu_s(peer.pid)
            done = raw_load.run(peer.api, centrifugo.PUBLISH, ("", _publication(0)), calls)
            return Round(done.per_second, cpu_between(before, cpu_s(peer.pid)) / done.requests * 1e6)

        return measure_pairs(
            "peer_publish_per_s",
            "publishes/s",
            Better.MORE,
            options,
            ours,
            theirs,
            baseline_is=f"Centrifugo {tools.CENTRIFUGO} with history, in memory, gone with the process",
            fsync=False,
        )


def _calls(options: Options) -> int:
    return round(options.seconds * _CALLS_A_SECOND)


def _change(number: int, request_id: str | None = None, scope: str = "", mark: str = "bench") -> bytes:
    change = core_pb2.NewChange(
        scope=scope or f"room-{number % _CHANNELS:03}",
        key="state",
        merge_patch_json=f'{{"page":{number},"by":"{mark}"}}',
    )
    own = f"request-{number:08}" if request_id is None else request_id
    return sync_service_pb2.PublishChangesRequest(request_id=own, changes=[change]).SerializeToString()


def _publication(number: int, channel: str = "", mark: str = "bench") -> bytes:
    data = f'{{"page":{number},"by":"{mark}"}}'.encode()
    return centrifugo.publish_request(channel or f"room-{number % _CHANNELS:03}", data)


@dataclass(frozen=True)
class _FanOut:
    p99_ms: float
    cpu_us: float
    kib_a_stream: float


def fanout(options: Options) -> Figure:
    """Measure the time from a publish to its arrival on 1,000 streams, 99th percentile."""
    ours, theirs = _fan_outs(options)
    runs = [[one.p99_ms, other.p99_ms] for one, other in zip(ours, theirs, strict=True)]
    cpu_us, baseline_cpu_us = (round(median(one.cpu_us for one in side), 1) for side in (ours, theirs))
    return _of_streams(
        "peer_fanout_p99_ms", "ms", runs, cpu_us_per_message=cpu_us, baseline_cpu_us_per_message=baseline_cpu_us
    )


def stream_memory(options: Options) -> Figure:
    """Measure the resident memory of a stream."""
    ours, theirs = _fan_outs(options)
    runs = [[one.kib_a_stream, other.kib_a_stream] for one, other in zip(ours, theirs, strict=True)]
    return _of_streams("peer_stream_rss_kb", "KiB/stream", runs, streams_per_connection=_PER_CONNECTION)


def _of_streams(name: str, unit: str, runs: list[list[float]], **notes: float) -> Figure:
    value, baseline = (median(side) for side in zip(*runs, strict=True))
    baseline_is = f"Centrifugo {tools.CENTRIFUGO}, unidirectional gRPC, the same receiver"
    known = {"baseline_is": baseline_is, "streams": _STREAMS, **notes}
    return Figure(name=name, unit=unit, better=Better.LESS, value=value, baseline=baseline, runs=runs, notes=known)


@functools.lru_cache(maxsize=1)  # both figures are of the same run
def _fan_outs(options: Options) -> tuple[list[_FanOut], list[_FanOut]]:
    tools.centrifugo()  # before the stores start
    users = [f"user-{number:05}" for number in range(_STREAMS)]
    watch = sync_service_pb2.WatchHintsRequest(device_id="phone").SerializeToString()
    ours: list[_FanOut] = []
    theirs: list[_FanOut] = []
    with migrated_stores() as stores:
        add_users(stores, users)
        asyncio.run(_join(stores.app_url, users))
        for number in range(1, min(options.rounds, _MOST_ROUNDS) + 1):
            with our_server(stores) as server:
                requests = [(user_token(user), watch) for user in users]
                publishes = [
                    (PUBLISH, SERVICE_TOKEN, _change(n, f"{number}-{n}", _SCOPE, _mark(n))) for n in range(_PUBLISHES)
                ]
                ours.append(
                    asyncio.run(_fan_out(server.pid, server.address, server.address, STREAM, requests, publishes))
                )
            with centrifugo.running_centrifugo() as peer:
                requests = [("", centrifugo.consume_request(_SCOPE))] * _STREAMS
                publishes = [(centrifugo.PUBLISH, "", _publication(n, _SCOPE, _mark(n))) for n in range(_PUBLISHES)]
                theirs.append(
                    asyncio.run(_fan_out(peer.pid, peer.api, peer.streams, centrifugo.CONSUME, requests, publishes))
                )
            report_progress(f"peer_fanout: round {number}: {ours[-1].p99_ms:.0f} against {theirs[-1].p99_ms:.0f} ms")
    return ours, theirs


async def _join(url: str, users: Sequence[str]) -> None:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        await connection.execute(
            "INSERT INTO scopes (app_id, scope, created_at) VALUES ('default', $1, syncbeat_now())", _SCOPE
        )
        await connection.execute(
            """INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
               SELECT 'default', user_id, $1, 'READER', syncbeat_now() FROM unnest($2::text[]) AS k (user_id)""",
            _SCOPE,
            list(users),
        )
    finally:
        await connection.close()


def _mark(number: int) -> str:
    return f"mark-{number:04}"


async def _fan_out(
    pid: int,
    api: str,
    address: str,
    path: str,
    requests: Sequence[tuple[str, bytes]],
    publishes: Sequence[tuple[str, str, bytes]],
) -> _FanOut:
    receiver = Receiver()
    try:
        before = rss_kb(pid)
        await receiver.open(address, path, requests, _PER_CONNECTION)
        await asyncio.sleep(2.0)
        kib = (rss_kb(pid) - before) / len(requests)
        cpu, delays = Cpu.now(pid), []
        for number, (method, token, request) in enumerate(publishes):
            receiver.expect(_mark(number).encode(), of=len(requests))
            started = time.perf_counter()
            await asyncio.to_thread(call, api, method, request, token)
            delays += [arrived - started for arrived in await receiver.arrivals()]
            await asyncio.sleep(1.0)
        used, _ = Cpu.now(pid).since(cpu)
        p99_s = sorted(delays)[int(len(delays) * 0.99)]
        return _FanOut(p99_s * 1e3, used / len(delays) * 1e6, kib)
    finally:
        receiver.close()


def push(options: Options) -> Figure:
    """Measure deliveries per second of one worker against the sends of firebase-admin for Node, on one fake FCM."""
    modules = tools.firebase_admin()
    runs: list[list[float]] = []
    costs: list[tuple[float, float]] = []
    with push_stage() as stage:
        stage.push(1, USERS // 2)  # connections and caches
        bearer, project = _access_token(stage)
        for number in range(1, options.rounds + 1):
            pushed = stage.push(2, _PUSHES // 2)
            per_s, cpu_us = _run_node(modules, stage, project, bearer)
            runs.append([pushed.count / pushed.seconds, per_s])
            costs.append((pushed.cpu_us, cpu_us))
            report_progress(f"peer_push: round {number}/{options.rounds}: {runs[-1][0]:,.0f} against {per_s:,.0f}/s")
    return Figure(
        name="peer_push_per_s",
        unit="deliveries/s",
        better=Better.MORE,
        value=median(mine for mine, _ in runs),
        baseline=median(theirs for _, theirs in runs),
        runs=runs,
        notes={
            "baseline_is": f"sendEach of firebase-admin {tools.FIREBASE_ADMIN} for Node alone, in batches of 500",
            "cpu_us_per_delivery": round(median(mine for mine, _ in costs), 1),
            "baseline_cpu_us_per_delivery": round(median(theirs for _, theirs in costs), 1),
        },
    )


def _access_token(stage: PushStage) -> tuple[str, str]:
    os.environ["SSL_CERT_FILE"] = stage.ca
    tokens = AccessTokens(stage.account, SystemClock())
    return asyncio.run(tokens.current()), tokens.project_id


def _run_node(modules: Path, stage: PushStage, project: str, bearer: str) -> tuple[float, float]:
    script = Path(__file__).with_name("firebase_sender.js")
    command = ["node", str(script), str(modules), stage.fake.address, project, bearer, str(_PUSHES)]
    trusted = {**os.environ, "NODE_EXTRA_CA_CERTS": stage.ca}
    done = subprocess.run(command, env=trusted, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise tools.PeerAbsent(f"firebase-admin for Node failed: {done.stderr.strip()[-300:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    return told["per_s"], told["cpu_us"]


FIGURES = {
    "peer_publish_per_s": publish,
    "peer_fanout_p99_ms": fanout,
    "peer_stream_rss_kb": stream_memory,
    "peer_push_per_s": push,
}
