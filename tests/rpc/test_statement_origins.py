"""Every statement that PostgreSQL logs while all RPCs are called says which method or task it comes from."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from urllib.parse import unquote

import asyncpg
import pytest

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.storage.postgres.pool.prepared_statements import MOST_STATEMENTS
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import wait_until
from tests.support.isolation import people
from tests.support.rpc_server import IMPLEMENTED, METHODS, Server, running_server
from tests.support.valid_requests import request_of

pytestmark = pytest.mark.rpc

ENTRY = re.compile(r"^\d{4}-\d\d-\d\d [^\[\n]*\[\d+\] (\w+):  ", re.MULTILINE)
STATEMENT = re.compile(r"(statement|execute [^:\n]+): (.*)", re.DOTALL)
ORIGIN = re.compile(r" /\*(method|task)='([\w.%-]+)'\*/\Z")

# They have nothing to ask the database for: the others are asked with a token or issuer that is refused before.
FROM_MEMORY = {"GetTokenCacheStats", "InvalidateTokenCache", "RefreshSession", "AcknowledgeDelivery"}
FROM_MEMORY |= {"CreateLinkToken", "LinkIdentity"}


class StatementLog:
    """The statements that PostgreSQL has logged of the service in one database."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._from = file.stat().st_size

    def read(self) -> list[tuple[bool, str]]:
        """All so far: whether it is a prepared one, and its text."""
        text = self._file.read_bytes()[self._from :].decode()
        starts = list(ENTRY.finditer(text))
        ends = [start.start() for start in starts[1:]] + [len(text)]
        entries = [text[start.end() : end].rstrip("\n") for start, end in zip(starts, ends, strict=True)]
        found = [STATEMENT.match(entry) for entry in entries]
        return [(match[1].startswith("execute"), match[2]) for match in found if match is not None]


async def logged(stores: EmbeddedStores, urls: DatabaseUrls) -> StatementLog:
    """Have all statements of the service logged from here on."""
    place = f"ALTER ROLE syncbeat_app IN DATABASE {urls.name} SET"
    await run_sql(urls.admin_url, f"{place} log_statement = 'all'", f"{place} log_min_messages = 'log'")
    return StatementLog(stores.folder.parent / "postgres.log")


async def call_all(server: Server) -> None:
    """Make the least call of each method, as somebody who may, whatever it answers."""
    for method in IMPLEMENTED:
        request = request_of(method)
        await server.allowed(method.input_type.name).outcome(method, request.SerializeToString())


async def push(server: Server) -> None:
    """Call what the least request is refused at, for an id that is none."""
    sent = await server.backend(
        push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["alice"]), notification=core_pb2.Notification(title="t")
        )
    )
    one = {"notification_id": sent.notification_id}
    for request in (
        push_service_pb2.GetNotificationRequest(**one),
        push_service_pb2.WatchDeliveriesRequest(**one),
        push_service_pb2.CancelNotificationRequest(**one),
    ):
        await server.backend(request)
    redrive = push_service_pb2.RedriveDeliveriesRequest(filter=push_service_pb2.DeliveryFilter(**one))
    await server.operator.outcome(METHODS["RedriveDeliveriesRequest"], redrive.SerializeToString())


async def test_every_statement_says_where_it_comes_from(
    stores: EmbeddedStores, database_urls: DatabaseUrls, redis_url: str
) -> None:
    log = await logged(stores, database_urls)
    async with running_server(database_urls, redis_url, Role.ALL) as server:
        await people(server)
        await call_all(server)
        once = {text for _, text in log.read()}
        await call_all(server)
        await push(server)
        await server.user("alice")(sync_service_pb2.GetHintRequest(device_id="her phone"))
    statements = log.read()
    assert len(statements) > 500
    origins: dict[str, set[str]] = {"method": set(), "task": set()}
    for _, text in statements:
        origin = ORIGIN.search(text)
        assert origin is not None, text
        assert text.count("/*") == 1, text
        origins[origin[1]].add(unquote(origin[2]))
    assert origins["method"] >= {method.name for method in IMPLEMENTED} - FROM_MEMORY
    assert origins["task"] >= {"start", "connect", "health", "DeliveryWorker.run", "HintTuner.run"}
    assert "unnamed" not in origins["task"]
    prepared = {text for is_prepared, text in statements if is_prepared}
    assert len(prepared) < MOST_STATEMENTS, "a connection keeps all that there are"
    # What a method runs is the same each time: there are no more plans than methods use.
    methods_again = {text for _, text in statements if "/*method=" in text} - once
    assert len(methods_again) < len(IMPLEMENTED)


async def test_statement_of_a_call_shows_in_pg_stat_activity(server: Server) -> None:
    holder, onlooker = [await asyncpg.connect(server.urls.admin_url) for _ in range(2)]
    waiting = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE preferences")
            # Of a statement longer than `track_activity_query_size` PostgreSQL would show the beginning alone.
            call = asyncio.create_task(server.user("alice")(directory_service_pb2.GetPreferencesRequest()))

            async def shown() -> bool:
                queries = [row["query"] for row in await onlooker.fetch(waiting)]
                return any(query.endswith("/*method='GetPreferences'*/") for query in queries)

            await wait_until(shown)
        await call
    finally:
        await holder.close()
        await onlooker.close()
