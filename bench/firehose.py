"""Cost of a firehose stream while 100 changes are published, with 20,000 scopes against 200."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import asyncpg
import grpc

from bench.echo_server import STREAM
from bench.figure import Better, Figure, Options, Round, measure_pairs
from bench.processes import RunningProcess
from bench.stage import PUBLISH, SERVICE_TOKEN, Cpu, migrated_stores, our_server
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

_CHANGES = 100
_MANY, _FEW = 20_000, 200
_TIMEOUT_S = 60.0
_METADATA = (("authorization", f"Bearer {SERVICE_TOKEN}"),)
_rounds = count(1)


def cpu(options: Options) -> Figure:
    """Measure milliseconds of server CPU for 100 publishes of one change, each streamed before the next."""
    return _measure("firehose_cpu_ms", "ms", options, lambda used_s, _: used_s * 1e3)


def bytes_received(options: Options) -> Figure:
    """Measure KiB of messages on the stream meanwhile."""
    return _measure("firehose_kib", "KiB", replace(options, rounds=1), lambda _, received: received / 1024)


def _measure(name: str, unit: str, options: Options, value: Callable[[float, int], float]) -> Figure:
    with _server_of(_MANY) as ours, _server_of(_FEW) as baseline:

        def side(server: RunningProcess, scopes: int) -> Round:
            return Round(value(*asyncio.run(_measure_changes(server, scopes, next(_rounds)))))

        return measure_pairs(
            name,
            unit,
            Better.LESS,
            options,
            lambda: side(ours, _MANY),
            lambda: side(baseline, _FEW),
            changes=_CHANGES,
            scopes=_MANY,
            baseline_scopes=_FEW,
        )


@contextmanager
def _server_of(scopes: int) -> Iterator[RunningProcess]:
    with migrated_stores() as stores:
        asyncio.run(_add_scopes(stores.admin_url, scopes))
        with our_server(stores) as server:
            yield server


async def _add_scopes(url: str, scopes: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            f"""INSERT INTO scopes (app_id, scope, head, created_at)
                SELECT 'default', 'room-' || n, 1, now() FROM generate_series(0, {scopes - 1}) n;
                INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
                SELECT app_id, scope, 'state', '{{"page":1}}', 1, now() FROM scopes;
                ANALYZE scopes, changes"""  # noqa: S608  # a number of ours
        )
    finally:
        await connection.close()


async def _measure_changes(server: RunningProcess, scopes: int, number: int) -> tuple[float, int]:
    """Return seconds of CPU, and bytes received, from the first publish to the last change."""
    async with asyncio.timeout(_TIMEOUT_S), grpc.aio.insecure_channel(server.address) as channel:
        stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(STREAM)
        publish: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PUBLISH)
        call = stream(pb.WatchHintsRequest(all_scopes=True, token="").SerializeToString(), metadata=_METADATA)
        await _read_to(call, "checkpoint")
        before = Cpu.now(server.pid)
        received = 0
        for index in range(_CHANGES):
            scope = f"room-{index * scopes // _CHANGES}"
            change = core_pb2.NewChange(scope=scope, key="state", merge_patch_json=f'{{"page":{number}}}')
            await publish(pb.PublishChangesRequest(changes=[change]).SerializeToString(), metadata=_METADATA)
            received += await _read_to(call, "change")
        received += await _read_to(call, "checkpoint")
        used_s, _ = Cpu.now(server.pid).since(before)
        call.cancel()
    return used_s, received


async def _read_to(call: grpc.aio.UnaryStreamCall[bytes, bytes], kind: str) -> int:
    received = 0
    while True:
        answer = await call.read()
        assert isinstance(answer, bytes), "the stream ended"
        received += len(answer)
        if pb.WatchHintsResponse.FromString(answer).WhichOneof("event") == kind:
            return received
