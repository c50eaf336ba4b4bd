"""Memory of one open WatchHints stream, against a stream of a bare server with the same number."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TypeAlias

import grpc

from bench.echo_server import STREAM
from bench.figure import Better, Figure, Options, Round, measure_pairs
from bench.processes import RunningProcess, rss_kb
from bench.stage import add_users, echo_server, migrated_stores, our_server, user_token
from syncbeat.v1 import sync_service_pb2

_Stream: TypeAlias = "grpc.aio.UnaryStreamCall[bytes, bytes]"

_STREAMS = 2_000
_WARM_UP = 200
_CONNECTIONS = 25  # below 100 streams on each
_MOST_ROUNDS = 3
_SETTLE_S = 2.0
_TIMEOUT_S = 60.0


def measure(options: Options) -> Figure:
    """Measure KiB of resident memory per stream, each of another user, on a new process in each round."""
    users = [f"user-{number:05}" for number in range(_STREAMS + _WARM_UP)]
    tokens = [user_token(user_id) for user_id in users]
    request = sync_service_pb2.WatchHintsRequest(device_id="phone").SerializeToString()
    with migrated_stores() as stores:
        add_users(stores, users)

        def ours() -> Round:
            with our_server(stores) as server:
                return _measure_growth(server, tokens, request)

        def baseline() -> Round:
            with echo_server(150) as server:
                return _measure_growth(server, tokens, request)

        few = replace(options, rounds=min(options.rounds, _MOST_ROUNDS))
        return measure_pairs("stream_rss_kb", "KiB/stream", Better.LESS, few, ours, baseline, streams=_STREAMS)


def _measure_growth(server: RunningProcess, tokens: list[str], request: bytes) -> Round:
    return Round(asyncio.run(_growth(server, tokens, request)))


async def _growth(server: RunningProcess, tokens: list[str], request: bytes) -> float:
    # Each with its own subchannel pool, or grpc would share one connection among them.
    channels = [
        grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(_CONNECTIONS)
    ]
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            calls = await _open_streams(channels, tokens[:_WARM_UP], request)
            await asyncio.sleep(_SETTLE_S)
            before = rss_kb(server.pid)
            calls += await _open_streams(channels, tokens[_WARM_UP:], request)
            await asyncio.sleep(_SETTLE_S)
            return (rss_kb(server.pid) - before) / (len(tokens) - _WARM_UP)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


async def _open_streams(channels: list[grpc.aio.Channel], tokens: list[str], request: bytes) -> list[_Stream]:
    calls: list[_Stream] = []
    for number, token in enumerate(tokens):
        channel = channels[number % len(channels)]
        stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(STREAM)
        calls.append(stream(request, metadata=(("authorization", f"Bearer {token}"),)))
    # A stream is open once a message has arrived.
    first = await asyncio.gather(*(call.read() for call in calls))
    assert all(answer is not grpc.aio.EOF for answer in first)
    return calls
