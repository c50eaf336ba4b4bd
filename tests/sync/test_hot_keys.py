"""Many patches of one key: one statement, one write; and nothing of a publish outlives its caller or its right."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter

import pytest

from syncbeat_server.errors import AccessDenied, InvalidRequest, SequenceMismatch
from syncbeat_server.events.publish import Published, Publisher
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.content.merge_patch import apply
from syncbeat_server.sync.model import NewChange
from tests.events.test_publish import call, together
from tests.support.build import APP, make_directory, make_publisher
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.seed import add_members, rows_of, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

COUNTING = (
    "CREATE TABLE written (key text, statement boolean)",
    "GRANT ALL ON written TO PUBLIC",
    """CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
       BEGIN
           INSERT INTO written VALUES (CASE TG_LEVEL WHEN 'ROW' THEN NEW.key END, TG_LEVEL = 'STATEMENT');
           RETURN NULL;
       END $$""",
    "CREATE TRIGGER row_written AFTER INSERT OR UPDATE ON changes FOR EACH ROW EXECUTE FUNCTION count_writes()",
    "CREATE TRIGGER written AFTER INSERT ON changes FOR EACH STATEMENT EXECUTE FUNCTION count_writes()",
)


@pytest.fixture
async def publisher(database: Database, clock: FakeClock) -> Publisher:
    return make_publisher(database, clock)


@pytest.fixture
async def counted(database_urls: DatabaseUrls) -> None:
    await run_sql(database_urls.admin_url, *COUNTING)


async def writes(database: Database) -> tuple[int, int]:
    """Return how many statements wrote to the feed, and how many rows."""
    statements = await value_of(database, "SELECT count(*) FILTER (WHERE statement) FROM written")
    return statements, await value_of(database, "SELECT count(*) FILTER (WHERE NOT statement) FROM written")


def patch(value: object) -> NewChange:
    return NewChange("couple", "hot", json.dumps(value))


@pytest.mark.usefixtures("counted")
async def test_hot_key_of_one_call_is_one_statement_and_one_write(database: Database, publisher: Publisher) -> None:
    large = [patch({f"k{n % 10}": {"v": "x" * 8_000, "n": n}}) for n in range(100)]
    published = await publisher.publish(call(*large))
    assert published.sequences == tuple(range(1, 101))
    assert await writes(database) == (1, 1)
    ((text, sequence),) = await rows_of(database, "SELECT value::text, sequence FROM changes")
    assert sequence == 100
    assert {name: member["n"] for name, member in json.loads(text).items()} == {f"k{n}": 90 + n for n in range(10)}


@pytest.mark.usefixtures("counted")
async def test_hot_key_of_a_batch_of_calls_is_one_write(database: Database, publisher: Publisher) -> None:
    results = await together(publisher, *(call(patch({str(n): n})) for n in range(64)))
    assert sorted(one.sequences[0] for one in results if isinstance(one, Published)) == list(range(1, 65))
    statements, rows = await writes(database)
    assert statements == rows <= 3  # the first comes alone; a batch is one
    assert json.loads(await value_of(database, "SELECT value::text FROM changes")) == {str(n): n for n in range(64)}
    assert await value_of(database, "SELECT head FROM scopes") == 64


async def test_hot_key_that_is_reset_in_between_is_not_merged_with_what_was_there(
    database: Database, publisher: Publisher
) -> None:
    await publisher.publish(call(patch({"a": {"x": 1}, "b": 1})))
    await publisher.publish(call(patch({"a": 5}), patch({"a": {"y": 2}})))
    assert json.loads(await value_of(database, "SELECT value::text FROM changes")) == {"a": {"y": 2}, "b": 1}
    gone = NewChange("couple", "hot", "", deleted=True)
    await publisher.publish(call(patch({"c": 1}), gone, NewChange("couple", "hot", '{"d": 1.50}'), patch({"e": None})))
    assert await value_of(database, "SELECT value::text FROM changes") == '{"d": 1.50}'
    await publisher.publish(call(patch({"c": 1}), gone))
    assert await rows_of(database, "SELECT value, deleted, sequence FROM changes") == [(None, True, 9)]


async def test_hot_key_expectations_are_those_of_each_call(database: Database, publisher: Publisher) -> None:
    results = await together(
        publisher,
        call(NewChange("couple", "hot", '{"a": 1}', expected_sequence=0)),
        call(NewChange("couple", "hot", '{"a": 2}', expected_sequence=0)),
        call(NewChange("couple", "hot", '{"b": 3}', expected_sequence=1)),
    )
    assert Counter(type(one) for one in results) == {Published: 2, SequenceMismatch: 1}
    assert await value_of(database, "SELECT value::text FROM changes") == '{"a": 1, "b": 3}'


async def test_value_oversized_is_refused_by_its_change(database: Database, publisher: Publisher) -> None:
    wide = "[" + ",".join(["1e300"] * 3_000) + "]"  # 0.9 MiB when it is read
    await publisher.publish(call(NewChange("couple", "wide", f'{{"a": {wide}}}')))
    for user_id in (None, "ann"):
        if user_id:
            await add_members(database, "couple", user_id)
        more = NewChange("couple", "wide", f'{{"b": {wide}}}')
        with pytest.raises(InvalidRequest, match="1 MiB") as refused:
            await publisher.publish(call("before", more, "after", user_id=user_id))
        assert [fault.path for fault in refused.value.violations] == ["changes[1].merge_patch_json"]
    assert await rows_of(database, "SELECT key FROM changes") == [("wide",)]


REMOVE = """CREATE FUNCTION remove_writer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        DELETE FROM scope_members WHERE user_id = 'ann';
        RETURN NULL;
    END $$"""


async def test_writer_removed_after_its_changes_leaves_none(
    database: Database, database_urls: DatabaseUrls, publisher: Publisher
) -> None:
    """Changes above the head would be read by nobody, and be in the way of the next."""
    await add_members(database, "couple", "ann")
    trigger = "CREATE TRIGGER removes AFTER INSERT ON changes FOR EACH STATEMENT EXECUTE FUNCTION remove_writer()"
    await run_sql(database_urls.admin_url, REMOVE, trigger)
    with pytest.raises(AccessDenied):
        await publisher.publish(call("k", user_id="ann"))
    await run_sql(database_urls.admin_url, "DROP TRIGGER removes ON changes")
    assert await value_of(database, "SELECT count(*) FROM changes") == 0
    assert (await publisher.publish(call("other"))).sequences == (1,)


async def test_writer_removed_while_publishing_is_denied(database: Database, publisher: Publisher) -> None:
    outcomes = Counter[str]()
    service = make_directory(database)
    await add_members(database, "couple", "ann")

    async def publish(name: str) -> None:
        while min(outcomes["published"], outcomes["denied"]) < 20:
            assert outcomes.total() < 5_000, outcomes
            try:
                await publisher.publish(call(f"{name}{outcomes.total()}", user_id="ann"))
                outcomes["published"] += 1
            except AccessDenied:
                outcomes["denied"] += 1

    async def come_and_go() -> None:
        while not publishing.done():
            await service.remove_members(APP, "couple", ["ann"])
            await add_members(database, "couple", "ann")

    publishing = asyncio.ensure_future(asyncio.gather(*map(publish, "abc")))
    await come_and_go()
    await publishing
    assert await value_of(database, "SELECT head FROM scopes") == outcomes["published"]
    assert await value_of(database, "SELECT count(*) FROM changes WHERE sequence > (SELECT head FROM scopes)") == 0


@pytest.mark.parametrize("user_id", [None, "ann"])
async def test_publish_cancelled_with_its_caller_leaves_nothing(
    database: Database, publisher: Publisher, user_id: str | None
) -> None:
    await add_members(database, "couple", "ann")
    async with database.transaction() as conn:
        await conn.execute("SELECT FROM scopes FOR UPDATE")
        publishing = asyncio.ensure_future(publisher.publish(call("k", user_id=user_id)))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        await wait_until(lambda: value_of(database, waiting))
        publishing.cancel()

        async def nobody_waits() -> bool:
            return not await value_of(database, waiting)

        await wait_until(nobody_waits, timeout_s=3.0)  # the lock would be waited for for 4 s
        await asyncio.wait([publishing], timeout=20)
    assert publishing.cancelled()
    assert (await publisher.publish(call("other"))).sequences == (1,)


async def test_merge_of_an_intricate_patch_is_fast(database: Database, publisher: Publisher) -> None:
    """40,000 objects in 256 KiB, which took PostgreSQL longer than the ten seconds of a statement."""

    def chain(inner: str) -> str:
        return '{"a":' * 30 + inner + "}" * 30

    text = ""
    for inner, other in (("1", '{"gone":null}'), ('{"b":2}', '[{"kept":null}]')):
        text = "{" + ",".join(f'"k{n}":{chain(inner)}' for n in range(1_200)) + f',"other":{other}}}'
        began = time.process_time()
        await publisher.publish(call(NewChange("couple", "hot", text), patch_of("cold", {"n": 1})))
        assert time.process_time() - began < 5
    value = json.loads(await value_of(database, "SELECT value::text FROM changes WHERE key = 'hot'"))
    assert value == json.loads(text)
    assert await value_of(database, "SELECT value::text FROM changes WHERE key = 'cold'") == '{"n": 1}'


def patch_of(key: str, value: object) -> NewChange:
    return NewChange("couple", key, json.dumps(value))


def nested(inner: str, depth: int) -> str:
    return '{"a":' * depth + inner + "}" * depth


async def large_and_deep(publisher: Publisher, key: str) -> None:
    """A value of 39,000 members in the thirtieth object."""
    for part in range(3):
        members = ",".join(f'"{n:05}":1' for n in range(part * 13_000, (part + 1) * 13_000))
        await publisher.publish(call(NewChange("couple", key, nested(f"{{{members}}}", 29))))


@pytest.mark.parametrize(
    "text",
    [
        nested('{"x":1}', 29),
        '{"b":1,"a":' + nested('{"x":1,"00000":null}', 28) + "}",
        nested('{"a":{"x":1},"b":{"c":{}}}', 28),
        '{"a":' * 29 + '{"x":1}' + ',"b":null}' * 29,
    ],
)
async def test_merge_into_a_large_value_is_linear(database: Database, publisher: Publisher, text: str) -> None:
    """200 octets took PostgreSQL 3 s, a pass over what is there for each level."""
    await large_and_deep(publisher, "hot")
    old = json.loads(await value_of(database, "SELECT value::text FROM changes"))
    took = []
    for _ in range(3):
        began = time.monotonic()
        await publisher.publish(call(NewChange("couple", "hot", text)))
        took.append(time.monotonic() - began)
    assert min(took) < 1.5  # 0.05 s by itself, and ten times that on a busy machine
    merged = apply(json.dumps(old), [text])
    assert merged is not None
    assert json.loads(await value_of(database, "SELECT value::text FROM changes")) == json.loads(merged)


@pytest.mark.parametrize("size", [1, 70_000])
async def test_publish_flood_of_one_user_leaves_connections_to_others(
    database: Database, publisher: Publisher, size: int
) -> None:
    await add_members(database, "couple", "ann")
    await add_members(database, "other", "bob")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with database.transaction() as conn:
        await conn.execute("SELECT FROM scopes WHERE scope = 'couple' FOR UPDATE")
        many = [asyncio.ensure_future(publisher.publish(call(patch("x" * size), user_id="ann"))) for _ in range(14)]
        await wait_until(lambda: value_of(database, waiting))
        many[-1].cancel()  # one that waits for a place
        for turn in range(3):
            calm = publisher.publish(call(NewChange("other", "k", "{}"), user_id="bob"))
            assert (await asyncio.wait_for(calm, 3)).sequences == (turn + 1,)  # the lock is waited for for 4 s
        assert await value_of(database, waiting) == 2
    results = await asyncio.gather(*many, return_exceptions=True)
    published = [one.sequences[0] for one in results if isinstance(one, Published)]
    assert sorted(published) == list(range(1, len(published) + 1))
    assert len(published) >= 11  # two may have waited for the lock for too long, and one has left
