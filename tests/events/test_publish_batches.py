"""Publishes of services share a transaction of few statements, with the locks and answers of single ones."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import pytest

from syncbeat_server.errors import RequestInFlight
from syncbeat_server.events.publish import Published, Publisher
from syncbeat_server.storage.postgres import database as database_module
from syncbeat_server.storage.postgres.database import Database, Row
from syncbeat_server.storage.postgres.driver_errors import LockTimeout
from syncbeat_server.storage.postgres.time_limits import DatabaseTimings
from syncbeat_server.sync.model import NewChange
from tests.events.test_publish import call, together
from tests.support.build import APP, make_publisher
from tests.support.databases import DatabaseUrls, open_database
from tests.support.fake_clock import START, FakeClock, wait_until
from tests.support.seed import rows_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

TWIN = """INSERT INTO request_records (app_id, caller, rpc, request_id, content_hash, created_at)
          VALUES ($1, 'service:test', 'PublishChanges', 'r', ''::bytea, syncbeat_now())"""
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid"


@pytest.fixture
def publisher(database: Database, clock: FakeClock) -> Publisher:
    return make_publisher(database, clock)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements of transactions, but for BEGIN and COMMIT."""
    made: list[str] = []
    session = database_module._Session
    fetch, execute = session.fetch, session.execute

    async def counted_fetch(self: database_module._Session, query: str, *args: object) -> Sequence[Row]:
        made.append(query)
        return await fetch(self, query, *args)

    async def counted_execute(self: database_module._Session, query: str, *args: object) -> str:
        made.append(query)
        return await execute(self, query, *args)

    monkeypatch.setattr(session, "fetch", counted_fetch)
    monkeypatch.setattr(session, "execute", counted_execute)
    return made


async def test_publish_takes_two_statements(publisher: Publisher, statements: list[str]) -> None:
    await publisher.publish(call("k", request_id="first"))
    statements.clear()
    results = await together(publisher, *(call(f"k{n}", request_id=f"r{n}") for n in range(20)), call("k"))
    assert all(isinstance(result, Published) for result in results), results
    # The first of a crowd may go alone, before the others have come.
    assert len(statements) in (2, 4), statements
    assert set(Counter(statements).values()) <= {1, 2}


async def test_publish_with_source_times_reads_keys_and_ranks_values(
    publisher: Publisher, statements: list[str]
) -> None:
    await publisher.publish(call("k"))
    for seconds, value, count in ((-5, 1, 3), (-6, 1, 3), (-5, 1, 4), (-4, 2, 4), (-3, 2, 5)):
        statements.clear()
        change = NewChange("couple", "other", f'{{"v": {value}}}', source_time=START + timedelta(seconds=seconds))
        await publisher.publish(call(change, request_id=f"r{seconds}{count}"))
        assert len(statements) == count, statements


async def test_sequences_are_gapless_when_batches_wait_for_each_other(
    database: Database, clock: FakeClock, publisher: Publisher
) -> None:
    other = make_publisher(database, clock)
    for one in (publisher, other):  # both know the scope: its row is locked without being written
        await one.publish(call("k"))
    rounds = [
        asyncio.gather(*(one.publish(call(f"k{n}", request_id=f"{name}{n}")) for n in range(40)))
        for name, one in (("a", publisher), ("b", other))
    ]
    results = [result for done in await asyncio.gather(*rounds) for result in done]
    assert sorted(result.sequences[0] for result in results) == list(range(3, 83))
    assert await rows_of(
        database, "SELECT head, count(*) FROM scopes JOIN changes USING (app_id, scope) GROUP BY 1"
    ) == [(82, 41)]


async def test_scope_that_has_gone_is_created_anew(database: Database, publisher: Publisher) -> None:
    assert (await publisher.publish(call("k"))).sequences == (1,)
    assert (await publisher.publish(call("k"))).sequences == (2,)
    async with database.transaction() as conn:
        await conn.execute("DELETE FROM changes")
        await conn.execute("DELETE FROM scopes")
    both = NewChange("another", "k", "{}"), NewChange("couple", "k", '{"v":1}')
    assert (await publisher.publish(call(*both, request_id="r"))).sequences == (1, 1)
    replay = await publisher.publish(call(*both, request_id="r"))
    assert (replay.sequences, replay.replayed) == ((1, 1), True)


async def test_replay_in_a_batch_leaves_the_others_alone(database: Database, publisher: Publisher) -> None:
    first = await publisher.publish(call("k", request_id="r"))
    results = await together(publisher, *(call("k", request_id=name) for name in ("r", "s", "s", "t")))
    done = [result for result in results if isinstance(result, Published)]
    assert [one.replayed for one in done] == [True, False, True, False]
    assert done[0].sequences == first.sequences
    assert [one.sequences for one in done[1:]] == [(2,), (2,), (3,)]
    answers = await rows_of(database, "SELECT answer ->> 'sequences' FROM request_records ORDER BY request_id")
    assert [json.loads(answer) for (answer,) in answers] == [[1], [2], [3]]


async def test_wait_for_a_twin_holds_no_scope(database: Database, clock: FakeClock, publisher: Publisher) -> None:
    await publisher.publish(call("k"))
    other = make_publisher(database, clock)
    async with database.transaction() as conn:
        await conn.execute(TWIN, APP)
        waits = asyncio.create_task(publisher.publish(call("k", request_id="r")))

        async def is_waiting() -> bool:
            return bool(await conn.fetchval(WAITING))

        await wait_until(is_waiting)
        assert (await other.publish(call("k"))).sequences == (2,)
        waits.cancel()
        await asyncio.wait([waits])


async def test_lock_timeout_names_what_was_waited_for(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    impatient = open_database(database_urls.app_url, size=2, name="impatient", timings=DatabaseTimings(lock_ms=50))
    async with impatient as opened:
        publisher = make_publisher(opened, clock)
        await publisher.publish(call("k"))
        async with database.transaction() as conn:
            await conn.execute("SELECT FROM scopes FOR UPDATE")
            with pytest.raises(LockTimeout):
                await publisher.publish(call("k", request_id="r"))
        async with database.transaction() as conn:
            await conn.execute(TWIN, APP)
            with pytest.raises(RequestInFlight):
                await publisher.publish(call("k", request_id="r"))
    assert await rows_of(database, "SELECT head FROM scopes") == [(1,)]
