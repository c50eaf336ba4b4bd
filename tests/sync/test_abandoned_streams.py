"""A stream whose caller leaves while a message waits to be sent: it is closed then, and what it held is given back."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
import redis

from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.rpc.convert import stream_events
from syncbeat_server.sync.model import Change
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Server

pytestmark = pytest.mark.rpc

CHANGES, OCTETS = 4, 250_000
SMALL_WINDOW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
"""Of HTTP/2: 64 KiB lie between the two ends of a stream that nobody reads, and no more."""


class Messages:
    """Those that streams have begun to send."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changes = 0
        encode = stream_events.EventEncoder.encode_change

        def counted(encoder: stream_events.EventEncoder, change: Change) -> bytes:
            self.changes += 1
            return encode(encoder, change)

        monkeypatch.setattr(stream_events.EventEncoder, "encode_change", counted)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """The collector rests: what goes has been let go of."""
    gc.disable()
    yield
    gc.enable()


async def publish_much(server: Server) -> None:
    for number in range(CHANGES):
        change = core_pb2.NewChange(scope="s", key=f"k{number}", merge_patch_json='"' + "x" * OCTETS + '"')
        await server.backend(pb.PublishChangesRequest(changes=[change]))


@pytest.mark.usefixtures("uncollected")
async def test_stream_abandoned_while_sending_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, server: Server, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent = Messages(monkeypatch)
    await server.add("s", "alice")
    await server.register("alice", "phone")
    async with grpc.aio.insecure_channel(server.address, options=SMALL_WINDOW) as channel:
        stream = replace(server.user("alice"), channel=channel).watch(device_id="phone")
        await stream.opened()
        with redis.Redis.from_url(redis_url) as client:
            await wait_until(lambda: client.keys("syncbeat:*:streams:*"), what="the device counts as connected")
            await publish_much(server)
            await wait_until(lambda: sent.changes)
            stream.call.cancel()
            await wait_until(lambda: not client.keys("syncbeat:*:streams:*"), what="it counts as gone")
    assert sent.changes < CHANGES, "it was left with some to send"
    told = [record for record in caplog.records if record.name.startswith("grpc") and record.levelno >= logging.WARNING]
    assert told == [], "nothing went wrong"
