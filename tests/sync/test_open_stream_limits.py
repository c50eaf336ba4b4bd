"""Bounds the open streams of a user and of a device."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.rpc_server import Caller, Server, Watch, refusal_of, running_server

pytestmark = pytest.mark.rpc


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str) -> AsyncIterator[Server]:
    """A server that lets few streams in."""
    async with running_server(database_urls, redis_url, STREAMS_PER_USER="3", STREAMS_PER_DEVICE="2") as running:
        for user in ("alice", "bob"):
            await running.register(user, "phone")
            await running.register(user, "tablet")
        yield running


async def refused(watch: Watch) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    refusal = refusal_of(caught.value)
    assert refusal.metadata["remaining"] == "0"
    return refusal.told


async def opened(caller: Caller, **fields: str) -> Watch:
    watch = caller.watch(**fields)
    await watch.opened()
    return watch


async def test_stream_limit_refuses_one_too_many_until_another_ends(server: Server) -> None:
    alice, too_many = server.user("alice"), ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
    first, _ = await opened(alice, device_id="phone"), await opened(alice, device_id="phone")
    assert await refused(alice.watch(device_id="phone")) == too_many
    assert await refused(server.backend.watch(user_id="alice", device_id="phone")) == too_many
    await opened(alice, device_id="tablet")
    assert await refused(alice.watch(device_id="tablet")) == too_many, "of a user"
    await opened(server.user("bob"), device_id="phone")
    first.call.cancel()

    async def lets_in() -> bool:
        try:
            kind, _ = await alice.watch(device_id="phone").read()
        except grpc.aio.AioRpcError as error:
            return refusal_of(error).told != too_many
        return bool(kind)

    await wait_until(lets_in)
