"""Tests the answers while PostgreSQL or Redis is away: the table in docs/operations.md, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.errors import ConfigurationError
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.rpc_server import METHODS, Server, hear_each_other, running_server
from tests.support.valkeys import running_valkey

pytestmark = pytest.mark.rpc

DEVICES = directory_service_pb2.ListDevicesRequest()
DOWN = ("UNAVAILABLE", "DEPENDENCY_DOWN")
REVOKED = ("UNAUTHENTICATED", "TOKEN_REVOKED")


@contextmanager
def without_postgres(stores: EmbeddedStores) -> Iterator[None]:
    stores.kill_postgres()
    try:
        yield
    finally:
        stores.start_postgres()


@contextmanager
def without_redis(stores: EmbeddedStores) -> Iterator[None]:
    stores.kill_redis()
    try:
        yield
    finally:
        stores.start_redis()


async def told(server: Server, token: str) -> tuple[str, str] | None:
    refusal = await server.bearer(token).outcome(METHODS["ListDevicesRequest"], b"")
    return None if refusal is None else refusal.told


async def test_postgres_outage_is_unavailable_not_unauthenticated(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    ops = f"127.0.0.1:{free_port()}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server, aiohttp.ClientSession() as http:
        session = await server.backend(pb.CreateSessionRequest(user_id="ann"))
        stranger = await server.backend(pb.CreateSessionRequest(user_id="bob"))
        await hear_each_other(server)  # or what it hears of its own sessions ends what it keeps of Ann
        assert await told(server, session.access_token) is None
        refresh = pb.RefreshSessionRequest(refresh_token=session.refresh_token)
        with without_postgres(stores):
            for token in (session.access_token, stranger.access_token):
                refusal = await server.bearer(token).refusal(DEVICES)
                assert refusal.told == DOWN
                assert int(refusal.pushback) > 0
            refusal = await server.backend.refusal(refresh)
            assert refusal.told == DOWN
            # Ann is known here, and is let in to what needs no database.
            stats = await server.backend(pb.GetTokenCacheStatsRequest())
            assert stats.total.hits >= 1
            async with http.get(f"http://{ops}/readyz") as answer:
                assert answer.status == 503
            async with http.get(f"http://{ops}/healthz") as answer:
                assert answer.status == 200
            async with http.get(f"http://{ops}/.well-known/jwks.json") as answer:
                assert len((await answer.json(content_type=None))["keys"]) == 1

        async def back() -> bool:
            return await told(server, stranger.access_token) is None

        await wait_until(back)
        assert (await server.backend(refresh)).session_id == session.session_id


async def test_redis_outage_interrupts_nothing_and_revocations_are_heard_afterwards(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    async with running_server(database_urls, redis_url) as one, running_server(database_urls, redis_url) as two:
        await one.register("ann", "phone", "a-token")
        session = await one.backend(pb.CreateSessionRequest(user_id="ann"))
        await hear_each_other(one, two)  # or what is told now is forgotten again
        assert await told(one, session.access_token) is None
        assert await told(two, session.access_token) is None
        stream = two.bearer(session.access_token).watch()
        await stream.opened()
        with without_redis(stores):
            asked = await one.user("ann")(sync_service_pb2.GetHintRequest(device_id="phone"))
            assert asked.hint.poll_interval.seconds >= 10
            for number in range(2):
                sent = await one.backend(
                    push_service_pb2.SendNotificationRequest(
                        user_ids=core_pb2.UserIds(ids=["ann"]),
                        notification=core_pb2.Notification(title="t"),
                        dedupe_key="one",
                    )
                )
                assert (sent.delivery_count, sent.suppressed_count) == (1, number)
            refusal = await one.backend.refusal(pb.InvalidateTokenCacheRequest(user_id="ann"))
            assert refusal.told == DOWN
            await one.backend(pb.RevokeSessionRequest(user_id="ann", session_id=session.session_id))
            assert await told(one, session.access_token) == REVOKED
            # The other process could not be told; it believes what it knows for a minute at most.
            assert await told(two, session.access_token) is None

        async def refused() -> bool:
            return await told(two, session.access_token) == REVOKED

        await wait_until(refused)
        with pytest.raises(Exception, match="revoked"):
            await stream.until(lambda *_: False)


async def test_redis_full_is_no_outage_and_shows_in_metrics(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    ops = f"127.0.0.1:{free_port()}"
    with running_valkey(tmp_path, "--maxmemory", "1") as valkey:
        async with running_server(database_urls, valkey.url, OPS_LISTEN=ops) as server, aiohttp.ClientSession() as http:
            await server.register("ann", "phone", "a-token")
            asked = await server.user("ann")(sync_service_pb2.GetHintRequest(device_id="phone"))
            assert asked.hint.poll_interval.seconds >= 10
            async with http.get(f"http://{ops}/readyz") as answer:
                assert answer.status == 200

            async def told() -> str:
                async with http.get(f"http://{ops}/metrics") as answer:
                    return await answer.text()

            first = await told()
            assert "syncbeat_redis_up 0.0" in first
            assert 'syncbeat_redis_errors_total{cause="full"} 0.0' not in first
            with valkey.client() as client:
                client.config_set("maxmemory", "0")

            async def over() -> bool:
                return "syncbeat_redis_up 1.0" in await told()

            await wait_until(over)


async def test_redis_cluster_is_refused_at_start(database_urls: DatabaseUrls, tmp_path: Path) -> None:
    sentence = r"SYNCBEAT_REDIS_URL: it is a Redis Cluster.*redis\+sentinel://"
    with (
        running_valkey(tmp_path, "--cluster-enabled", "yes") as valkey,
        pytest.raises(ConfigurationError, match=sentence),
    ):
        async with running_server(database_urls, valkey.url):
            pass
