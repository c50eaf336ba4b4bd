"""`watch(all_scopes=True)` of the Python client: one token resumes the whole app, whatever becomes of the streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from syncbeat import ClientRule, SyncbeatClient, Watch, explain
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.v1.error_reason_pb2 import ErrorReason
from syncbeat_server.clock import SystemClock
from syncbeat_server.sync.feed.epoch_renewal import renew_epochs
from tests.support.client_servers import (
    WAIT_S,
    Hold,
    Refusal,
    Scripted,
    client_of,
    publish,
    real_server,
    scripted_server,
)
from tests.support.databases import DatabaseUrls, open_database, run_sql
from tests.support.fake_clock import wait_until
from tests.support.ports import free_port

pytestmark = pytest.mark.rpc

ROOT = Path(__file__).parents[2]
EAGER = ClientRule(first_delay_s=0.0)
DOWN = Refusal(grpc.StatusCode.UNAVAILABLE)


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    async with scripted_server() as served:
        yield served


def change(scope: str, sequence: int) -> pb.WatchHintsResponse:
    row = pb.Change(scope=scope, epoch="e", key=f"k{sequence}", value_json="1", sequence=sequence)
    return pb.WatchHintsResponse(change=row)


def checkpoint(token: str) -> pb.WatchHintsResponse:
    return pb.WatchHintsResponse(checkpoint=pb.Checkpoint(token=token))


def at(scope: str, sequence: int) -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope=scope, epoch="e", sequence=sequence)


async def changes(watch: Watch, last: tuple[str, int]) -> list[tuple[str, int]]:
    """(scope, sequence) of the changes that come, up to the last."""
    found = []
    async with asyncio.timeout(WAIT_S):
        async for event in watch:
            if isinstance(event, pb.Change):
                found.append((event.scope, event.sequence))
                if found[-1] == last:
                    break
    return found


async def next_token(watch: Watch) -> str:
    async with asyncio.timeout(WAIT_S):
        async for event in watch:
            if isinstance(event, pb.Checkpoint):
                assert event.token == watch.token
                return event.token
    raise AssertionError("the watch ended")


def asked(script: Scripted) -> list[tuple[str, list[str]]]:
    """The token and the scopes of the cursors that each attempt named."""
    requests = [attempt.request for attempt in script.attempts["WatchHints"]]
    assert all(request.HasField("token") and request.all_scopes for request in requests)
    return [(request.token, [cursor.scope for cursor in request.cursors]) for request in requests]


async def test_firehose_resumes_by_its_last_token_and_shows_nothing_twice(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare(
        "WatchHints",
        [change("a", 1), checkpoint("t1"), change("b", 1), change("a", 2), DOWN],
        [change("a", 2), change("b", 1), change("b", 2), checkpoint("t2"), DOWN],
        [change("c", 1), Hold()],
    )
    async with client_of(address, rule=EAGER) as client, client.watch(all_scopes=True) as watch:
        assert watch.token == ""
        assert await changes(watch, ("b", 2)) == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
        assert await changes(watch, ("c", 1)) == [("c", 1)]
        assert watch.token == "t2"
    assert asked(script) == [("", []), ("t1", []), ("t2", [])]


async def test_firehose_begins_at_a_kept_token(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change("a", 1), Hold()])
    async with client_of(address, rule=EAGER) as client, client.watch(all_scopes=True, token="kept") as watch:
        assert await changes(watch, ("a", 1)) == [("a", 1)]
        assert watch.token == "kept"
    assert asked(script) == [("kept", [])]


async def test_firehose_goes_from_kept_cursors_to_a_token(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change("a", 6), DOWN], [checkpoint("t1"), DOWN], [change("a", 7), Hold()])
    async with client_of(address, rule=EAGER) as client, client.watch(all_scopes=True, cursors=[at("a", 5)]) as watch:
        assert await changes(watch, ("a", 7)) == [("a", 6), ("a", 7)]
    assert asked(script) == [("", ["a"]), ("", ["a"]), ("t1", [])]


async def test_firehose_goes_on_by_cursors_with_a_server_that_knows_no_tokens(
    scripted: tuple[Scripted, str],
) -> None:
    script, address = scripted
    earlier = pb.WatchHintsResponse(checkpoint=pb.Checkpoint(cursors=[at("a", 1), at("b", 3)]))
    script.prepare("WatchHints", [change("a", 1), earlier, DOWN], [change("b", 4), Hold()])
    async with client_of(address, rule=EAGER) as client, client.watch(all_scopes=True) as watch:
        assert await changes(watch, ("b", 4)) == [("a", 1), ("b", 4)]
        assert watch.cursors == [at("a", 1), at("b", 4)]
    assert asked(script) == [("", []), ("", ["a", "b"])]


async def test_firehose_that_is_reset_takes_lower_sequences_and_the_token_after_it(
    scripted: tuple[Scripted, str],
) -> None:
    script, address = scripted
    reset = pb.WatchHintsResponse(reset=pb.Reset(token="all"))
    script.prepare("WatchHints", [change("a", 9), reset, DOWN], [reset, checkpoint("t2"), change("a", 3), Hold()])
    async with client_of(address, rule=EAGER) as client, client.watch(all_scopes=True, token="t1") as watch:
        assert await changes(watch, ("a", 9)) == [("a", 9)]
        for _ in range(2):
            event = await anext(watch)
            assert isinstance(event, pb.Reset)
            assert (event.scope, event.token, watch.token) == ("", "all", "t1")
        assert await next_token(watch) == "t2"
        assert await changes(watch, ("a", 3)) == [("a", 3)]
    assert asked(script) == [("t1", []), ("t1", [])], "before there is a new token the old one is reset again"


async def test_firehose_remembers_a_bounded_number_of_scopes(scripted: tuple[Scripted, str]) -> None:
    rule = replace(EAGER, max_cursors_beside_token=3)
    script, address = scripted
    script.prepare("WatchHints", [checkpoint("t1"), *(change(f"s{number}", 1) for number in range(9)), Hold()])
    kept = [at(f"c{number}", 1) for number in range(9)]
    async with client_of(address, rule=rule) as client, client.watch(all_scopes=True, cursors=kept) as watch:
        await changes(watch, ("s8", 1))
        assert [cursor.scope for cursor in watch.cursors] == ["s6", "s7", "s8"]


async def test_firehose_token_is_not_sent_for_a_user(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change("a", 1), Hold()])
    async with client_of(address, rule=EAGER) as client, client.watch("phone") as watch:
        assert await changes(watch, ("a", 1)) == [("a", 1)]
    assert not script.attempts["WatchHints"][0].request.HasField("token")


async def first_reset(watch: Watch) -> pb.Reset:
    async with asyncio.timeout(WAIT_S):
        async for event in watch:
            if isinstance(event, pb.Reset):
                return event
    raise AssertionError("the watch ended")


# ------------------------------------------------------------------------------------------------------- a real server


async def test_firehose_misses_nothing_over_a_drain_and_brings_scopes_it_never_met(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    port = free_port()
    async with (
        real_server(database_urls, redis_url) as other,
        client_of(other) as backend,
        client_of(f"127.0.0.1:{port}", rule=ClientRule(max_delay_s=1.0)) as client,
        client.watch(all_scopes=True) as watch,
    ):
        async with real_server(database_urls, redis_url, port):
            await next_token(watch)
            await publish(backend, "room", "one", "two")
            assert await changes(watch, ("room", 2)) == [("room", 1), ("room", 2)]
            reading = asyncio.create_task(changes(watch, ("zone", 1)))
        await publish(backend, "between", "only")
        await publish(backend, "room", "one")
        async with real_server(database_urls, redis_url, port):
            await publish(backend, "zone", "k")
            assert await reading == [("between", 1), ("room", 3), ("zone", 1)]
            await watch.close()


async def test_firehose_token_of_a_replaced_database_is_reset(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with real_server(database_urls, redis_url) as address, client_of(address) as client:
        async with client.watch(all_scopes=True) as watch:
            token = await next_token(watch)
        await publish(client, "room", "one", "two")
        await run_sql(
            database_urls.owner_url,
            "CREATE OR REPLACE FUNCTION syncbeat_feed_identity() RETURNS text LANGUAGE sql AS $$ SELECT 'other' $$",
        )
        async with client.watch(all_scopes=True, token=token) as watch:
            reset = await first_reset(watch)
            assert not reset.scope
            assert not reset.HasField("head")
            assert await changes(watch, ("room", 2)) == [("room", 1), ("room", 2)]
        async with client.watch(all_scopes=True, token=reset.token) as watch:
            assert await changes(watch, ("room", 2)) == [("room", 1), ("room", 2)]


class Kept:
    """The database of the consumer in docs/streams.md."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], str] = {}
        self.token = ""
        self.drops = 0

    async def kept_token(self) -> str:
        return self.token

    async def keep_token(self, token: str) -> None:
        self.token = token

    async def drop_everything(self) -> None:
        self.rows.clear()
        self.drops += 1

    async def put(self, scope: str, key: str, value_json: str, deleted: bool) -> None:
        if deleted:
            self.rows.pop((scope, key), None)
        else:
            self.rows[scope, key] = value_json


def documented_consumer(backend: SyncbeatClient, kept: Kept) -> Coroutine[None, None, None]:
    """The function that docs/streams.md gives to a service that follows everything, as it stands there."""
    section = (ROOT / "docs" / "streams.md").read_text().split("## A service that follows everything")[1]
    code = section.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"__name__": "streams"}
    exec(code, names)  # noqa: S102  # our own page
    consuming: Coroutine[None, None, None] = names["follow"](backend, kept)
    return consuming


def has(kept: Kept, drops: int, rows: int) -> bool:
    return (kept.drops, len(kept.rows)) == (drops, rows)


async def test_documented_consumer_has_everything_after_new_epochs(database_urls: DatabaseUrls, redis_url: str) -> None:
    kept = Kept()
    async with (
        real_server(database_urls, redis_url) as address,
        client_of(address) as client,
        open_database(database_urls.app_url, size=1, name="operator") as database,
    ):
        consuming = asyncio.ensure_future(documented_consumer(client, kept))
        await wait_until(lambda: kept.token)
        before = kept.token
        for number in range(5):
            await publish(client, f"s{number}", "k")
        await wait_until(lambda: len(kept.rows) == 5)
        for drops in (1, 2):  # while it watches
            await renew_epochs(database, SystemClock(), None)
            await wait_until(partial(has, kept, drops, 5))
        await wait_until(lambda: kept.token != before)
        consuming.cancel()
        await asyncio.wait([consuming])
        await renew_epochs(database, SystemClock(), None)  # while it is away
        await publish(client, "s5", "k")
        kept.token = before
        consuming = asyncio.ensure_future(documented_consumer(client, kept))
        await wait_until(partial(has, kept, 3, 6))
        await wait_until(lambda: kept.token != before)
        consuming.cancel()
        await asyncio.wait([consuming])
        consuming = asyncio.ensure_future(documented_consumer(client, kept))
        await publish(client, "s6", "k")
        await wait_until(lambda: len(kept.rows) == 7)
        consuming.cancel()
        await asyncio.wait([consuming])
    assert kept.drops == 3


async def refused(client: SyncbeatClient, **fields: object) -> tuple[grpc.StatusCode, str, list[str]]:
    """Status, reason and fields that a stream is refused with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in client.sync.WatchHints(pb.WatchHintsRequest(**fields)):  # type: ignore[arg-type]  # any field
            pass
    details = explain(caught.value)
    return details.code, ErrorReason.Name(details.reason), [fault.path for fault in details.violations]


async def test_firehose_token_is_refused_by_its_field(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with real_server(database_urls, redis_url) as address, client_of(address) as client:
        async with client.watch(all_scopes=True) as watch:
            token = await next_token(watch)
        wrong = (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_INVALID_FIELD", ["token"])
        for bad in (token[:-1], token.swapcase(), token + "A", "x", "\N{SNOWMAN}", "A" * 8_193, "nul\0"):
            assert await refused(client, all_scopes=True, token=bad) == wrong, bad
        assert await refused(client, user_id="alice", token="") == wrong
        assert await refused(client, all_scopes=True, token=token, cursors=[at("room", 1)]) == (*wrong[:2], ["cursors"])
