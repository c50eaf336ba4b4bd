"""Health as orchestrators see it: per service over gRPC, and /readyz, which says what was found."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import asyncpg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from syncbeat.v1 import core_pb2, sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import TEST_APP_LOGIN, DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port
from tests.support.rpc_server import Server, running_server

pytestmark = pytest.mark.rpc

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PROBLEM = "application/problem+json"
SERVICES = ("", *(f"syncbeat.v1.{name}Service" for name in ("Sync", "Push", "Directory", "Auth")))
TOLD_WITHIN_S = 5.0


async def statuses(server: Server) -> dict[str, int]:
    stub = health_pb2_grpc.HealthStub(server.channel)
    asked = {name: stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in (*SERVICES, "liveness")}
    return {name: int((await answer).status) for name, answer in asked.items()}


async def get(ops: str, path: str) -> tuple[int, str, Any]:
    """Status, content type and body, as JSON where it is."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{ops}{path}") as answer:
        json = answer.content_type.endswith("json")
        return answer.status, answer.content_type, await (answer.json(content_type=None) if json else answer.text())


async def told(server: Server, status: int) -> float:
    """Wait until the watched status of the whole server is this one; return the seconds until then."""
    watched: Any = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
    began_s = asyncio.get_running_loop().time()
    async with asyncio.timeout(20):
        while (await watched.read()).status != status:
            pass
    watched.cancel()
    return asyncio.get_running_loop().time() - began_s


async def test_health_follows_postgres_and_liveness_does_not(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    ops = f"127.0.0.1:{free_port()}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        assert await statuses(server) == dict.fromkeys((*SERVICES, "liveness"), SERVING)
        assert await get(ops, "/readyz") == (200, "text/plain", "ready\n")
        stores.kill_postgres()
        try:
            assert await told(server, NOT_SERVING) < TOLD_WITHIN_S, "nobody has called meanwhile"
            assert await statuses(server) == {**dict.fromkeys(SERVICES, NOT_SERVING), "liveness": SERVING}
            assert (await get(ops, "/healthz"))[0] == 200
            status, kind, problem = await get(ops, "/readyz")
            assert (status, kind) == (503, PROBLEM)
            assert problem.keys() == {"title", "status", "detail", "reason"}
            assert (problem["title"], problem["status"], problem["reason"]) == (
                *("Service Unavailable", 503),
                "DEPENDENCY_DOWN",
            )
            status, kind, verbose = await get(ops, "/readyz?verbose")
            assert (status, kind, verbose["status"]) == (503, "application/json", "not_ready")
            assert verbose["checks"]["postgresql"]["state"] == "down"
            assert verbose["pool"]["circuitState"] == "OPEN"
            assert verbose["pool"]["successRate"] < 1
        finally:
            stores.start_postgres()
        await told(server, SERVING)
        assert (await get(ops, "/readyz"))[0] == 200


async def test_readyz_verbose_tells_checks_and_pool(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    ops = f"127.0.0.1:{free_port()}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        await server.add("s", "alice")
        status, _, verbose = await get(ops, "/readyz?verbose")
        assert (status, verbose["status"]) == (200, "ready")
        assert verbose["checks"].keys() == {"postgresql", "migrations", "redis"}
        assert all(check == {"state": "ok", "reason": None, "detail": ""} for check in verbose["checks"].values())
        pool = verbose["pool"]
        assert pool["totalRequests"] > 0
        assert (pool["successRate"], pool["circuitState"]) == (1.0, "CLOSED")
        assert pool["averageResponseTime"] > 0
        assert (pool["size"], pool["waiters"]) == (4, 0)
        assert 1 <= pool["connections"] <= 4
        metrics = (await get(ops, "/metrics"))[2]
        assert "syncbeat_pool_size 4.0" in metrics
        assert 'syncbeat_pool_shed_total{rank="background"} 0.0' in metrics
        assert "syncbeat_pool_acquire_seconds_count" in metrics
        assert "syncbeat_ready 1.0" in metrics
        stores.kill_redis()
        try:

            async def degraded() -> bool:
                status, _, verbose = await get(ops, "/readyz?verbose")
                assert status == 200
                return bool(verbose["status"] == "degraded" and verbose["checks"]["redis"]["state"] == "degraded")

            await wait_until(degraded)
            assert await get(ops, "/readyz") == (200, "text/plain", "degraded\n")
            assert (await statuses(server))[""] == SERVING
            assert 'syncbeat_check_passed{check="redis"} 0.0' in (await get(ops, "/metrics"))[2]
        finally:
            stores.start_redis()


async def test_readiness_ends_while_migrations_are_behind(database_urls: DatabaseUrls, redis_url: str) -> None:
    ops = f"127.0.0.1:{free_port()}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        admin = await asyncpg.connect(database_urls.admin_url)
        last = await admin.fetchrow(
            "DELETE FROM schema_migrations WHERE version = (SELECT max(version) FROM schema_migrations) RETURNING *"
        )
        assert last is not None
        try:
            assert await told(server, NOT_SERVING) < TOLD_WITHIN_S
            status, _, problem = await get(ops, "/readyz")
            assert (status, problem["reason"]) == (503, "MIGRATION_NEEDED")
            assert "syncbeat-server migrate" in problem["detail"]
            await admin.execute("INSERT INTO schema_migrations VALUES ($1, $2, $3, $4)", *last)
            await told(server, SERVING)
        finally:
            await admin.close()


async def test_readiness_names_the_login_that_postgres_refuses(database_urls: DatabaseUrls, redis_url: str) -> None:
    ops = f"127.0.0.1:{free_port()}"
    refuse = f"ALTER ROLE {TEST_APP_LOGIN} {{}}"
    end_all = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{TEST_APP_LOGIN}'"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        await run_sql(database_urls.admin_url, refuse.format("NOLOGIN"), end_all)
        try:
            assert await told(server, NOT_SERVING) < TOLD_WITHIN_S

            async def names_it() -> bool:
                checks = (await get(ops, "/readyz?verbose"))[2]["checks"]
                return all("refuses the login" in checks[name]["detail"] for name in ("postgresql", "migrations"))

            await wait_until(names_it)
        finally:
            await run_sql(database_urls.admin_url, refuse.format("LOGIN"))


async def test_readiness_ends_on_a_server_that_takes_no_writes(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with running_server(database_urls, redis_url) as server:
        setting = f"ALTER DATABASE {database_urls.name}"
        await run_sql(database_urls.admin_url, f"{setting} SET default_transaction_read_only = on")
        cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database_urls.name}' "
        await run_sql(database_urls.admin_url, f"{cut} AND usename = 'syncbeat_app'")
        assert await told(server, NOT_SERVING) < TOLD_WITHIN_S
        admin = await asyncpg.connect(database_urls.admin_url, server_settings={"default_transaction_read_only": "off"})
        await admin.execute(f"{setting} RESET default_transaction_read_only")
        await admin.close()
        # Connections that were opened meanwhile keep the setting, as those to a demoted primary do: they are replaced.
        await told(server, SERVING)


async def test_readiness_ends_with_the_drain_which_operators_can_watch(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    ops = f"127.0.0.1:{free_port()}"
    async with running_server(database_urls, redis_url, OPS_LISTEN=ops) as server:
        await server.add("s", "alice")
        conn = await asyncpg.connect(server.urls.admin_url)
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute("SELECT 1 FROM scopes WHERE scope = 's' FOR UPDATE")
        change = core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")
        call = asyncio.create_task(server.backend(sync_service_pb2.PublishChangesRequest(changes=[change])))

        async def waits() -> bool:
            query = """SELECT count(*) FROM pg_stat_activity
                       WHERE wait_event_type = 'Lock' AND datname = current_database()"""
            return bool(await conn.fetchval(query))

        await wait_until(waits)
        server.stop.set()

        async def drains() -> bool:
            status, _, problem = await get(ops, "/readyz")
            return status == 503 and problem["reason"] == "OVERLOADED" and "drains" in problem["detail"]

        await wait_until(drains)
        assert not server.task.done()
        assert (await get(ops, "/healthz"))[0] == 200
        await transaction.rollback()
        await conn.close()
        assert (await call).heads[0].sequence == 1
        await asyncio.wait_for(server.task, 20)
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(ops, "/healthz")
