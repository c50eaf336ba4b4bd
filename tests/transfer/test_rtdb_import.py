"""Imports write through the feed, once; go on exactly where they were ended; and take nothing from live writers."""

from __future__ import annotations

import asyncio
import functools
import io
import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings

from syncbeat_server.clock import SystemClock
from syncbeat_server.defaults import DEVICES_PER_USER
from syncbeat_server.directory.store import members as member_rows
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ratelimit.catalog import MEMBERS_OF_SCOPE
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import NewChange
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.importing.batches import ImportSource
from syncbeat_server.transfer.importing.importer import Importer, Progress
from syncbeat_server.transfer.importing.report import ImportReport
from syncbeat_server.transfer.importing.throttle import ThrottleRule
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.mapping.reverse import path_of_value
from syncbeat_server.transfer.model import Json, MisfitReason, Path
from syncbeat_server.transfer.rtdb.shapes import canonical, exported, json_text
from tests.support.build import APP
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.rtdb_exports import MAP
from tests.support.rtdb_trees import TREES, entries_of, tree_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

SMALL = ThrottleRule(target_s=30.0, least=2, most=8)
"""Batches small enough for a dozen in a test; a busy machine shrinks none."""
BEGUN = datetime(2026, 1, 31, 12, tzinfo=UTC)
WHOLE = 'version = 1\n[[value]]\npath = "{top}/{key}"\nscope = "top:{top}"\nkey = "{key}"\n'


class _Killed(Exception):  # named for what it stands for
    pass


async def _import(
    database: Database,
    clock: FakeClock,
    tree: str,
    rules: str = MAP,
    *,
    begun: datetime = BEGUN,
    import_id: str = "0" * 64,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> ImportReport:
    source = ImportSource(parse_map(rules), APP, begun)
    importer = Importer(database, clock, source, import_id, lambda _: DEFAULT_PRIOR, SMALL)
    return await importer.run(io.BytesIO(tree.encode()), "export.json", on_progress)


async def _feed(database: Database) -> dict[tuple[str, str], tuple[str | None, int]]:
    async with database.connection() as conn:
        rows = await conn.fetch("SELECT scope, key, value::text AS value, sequence FROM changes WHERE app_id = $1", APP)
    return {(row["scope"], row["key"]): (row["value"], row["sequence"]) for row in rows}


async def _table(database: Database, sql: str) -> list[dict[str, Any]]:
    async with database.connection() as conn:
        return [dict(row) for row in await conn.fetch(sql)]


async def _publish(database: Database, *changes: NewChange) -> None:
    async with database.transaction() as conn:
        await append(conn, [Append(APP, changes)], lambda _: DEFAULT_PRIOR, create_scopes=True)


TREE = """{
  "chats": {
    "c1": {"title": "One", "members": {"ann": true, "bob": "viewer"},
           "messages": {"-JhLeOlGIEjaIOFHR0xd": {"text": "hi", "n": 0.10, "l": ["a", null, "b"]},
                        "odd": {"text": "x"}}},
    "c2": {"title": "Two", "members": {"ann": true}}
  },
  "profiles": {"ann": {"name": "Ann", "gone": null, "none": {}}, "bob": {"name": "B\\u0000b"}},
  "tokens": {"ann": {"tok-a": "ios"}, "bob": {"tok-b": "palm"}},
  "settings": {"ann": {"max": 3, "muted": ["ads"]}},
  "presence": {"ann": true},
  "more": {"x": 1}
}"""


async def test_import_writes_values_members_devices_and_preferences(database: Database, clock: FakeClock) -> None:
    report = await _import(database, clock, TREE)

    assert await _feed(database) == {
        ("chat:c1", "title"): ('"One"', 1),
        ("chat:c1", "m:-JhLeOlGIEjaIOFHR0xd"): ('{"l": {"0": "a", "2": "b"}, "n": 0.10, "text": "hi"}', 2),
        ("chat:c2", "title"): ('"Two"', 1),
        ("user:ann", "profile"): ('{"name": "Ann"}', 1),
    }
    assert (report.written, report.members, report.devices, report.preferences) == (4, 3, 1, 1)
    assert {(pattern, reason): one.count for (pattern, reason), one in report.misfits.items()} == {
        ("chats/{chat}/messages/{message}", MisfitReason.NOT_PUSH_ID): 1,
        ("profiles/{user}", MisfitReason.NUL): 1,
        ("tokens/{user}/{token}", MisfitReason.PLATFORM): 1,
        ("more", MisfitReason.UNMATCHED): 1,
    }
    assert await _table(database, "SELECT scope, user_id, role FROM scope_members ORDER BY 1, 2") == [
        {"scope": "chat:c1", "user_id": "ann", "role": "WRITER"},
        {"scope": "chat:c1", "user_id": "bob", "role": "READER"},
        {"scope": "chat:c2", "user_id": "ann", "role": "WRITER"},
    ]
    assert await _table(database, "SELECT user_id, registration_token, token_state FROM devices") == [
        {"user_id": "ann", "registration_token": "tok-a", "token_state": "ACTIVE"}
    ]
    assert await _table(database, "SELECT user_id, max_per_day, muted_types FROM preferences") == [
        {"user_id": "ann", "max_per_day": 3, "muted_types": ["ads"]}
    ]
    assert await _table(database, "SELECT * FROM notifications") == []


async def test_import_of_a_later_export_changes_nothing_but_source_times(database: Database, clock: FakeClock) -> None:
    await _import(database, clock, TREE)
    scopes = await _table(database, "SELECT * FROM scopes ORDER BY scope")
    values = "SELECT scope, key, value, sequence, changed_at, xid::text FROM changes ORDER BY scope, key"
    feed = await _table(database, values)

    later = BEGUN + timedelta(seconds=60)
    again = await _import(database, clock, TREE, import_id="1" * 64, begun=later)

    assert (again.changed, again.unchanged, again.superseded) == (0, 4, 0)
    assert await _table(database, values) == feed, "no device fetches anything again"
    assert await _table(database, "SELECT * FROM scopes ORDER BY scope") == scopes
    assert await _table(database, "SELECT DISTINCT source_time FROM changes WHERE key = 'title'") == [
        {"source_time": later}
    ]


async def test_import_takes_source_times_of_push_ids_and_of_the_export(database: Database, clock: FakeClock) -> None:
    await _import(database, clock, TREE)

    rows = await _table(database, "SELECT key, source_time FROM changes WHERE scope = 'chat:c1'")
    times = {row["key"]: row["source_time"] for row in rows}
    assert times["title"] == BEGUN
    assert times["m:-JhLeOlGIEjaIOFHR0xd"].year == 2015


async def test_second_import_changes_nothing(database: Database, clock: FakeClock) -> None:
    await _import(database, clock, TREE)
    feed = await _feed(database)
    scopes = await _table(database, "SELECT * FROM scopes ORDER BY scope")

    again = await _import(database, clock, TREE)
    other = await _import(database, clock, TREE, import_id="1" * 64)

    assert (again.changed, again.unchanged, again.present) == (0, 4, 5)
    assert (other.changed, other.unchanged, other.present) == (0, 4, 5)
    assert await _feed(database) == feed
    assert await _table(database, "SELECT * FROM scopes ORDER BY scope") == scopes


async def test_later_live_writes_and_deletions_stay(database: Database, clock: FakeClock) -> None:
    later = BEGUN + timedelta(seconds=1)
    await _publish(
        database,
        NewChange("chat:c1", "title", '"live"', source_time=later),
        NewChange("chat:c2", "title", "", deleted=True, source_time=later),
        NewChange("user:ann", "profile", '{"name": "old"}', source_time=BEGUN - timedelta(days=1)),
    )

    report = await _import(database, clock, TREE)

    feed = await _feed(database)
    assert feed["chat:c1", "title"] == ('"live"', 1)
    assert feed["chat:c2", "title"] == (None, 1)
    assert feed["user:ann", "profile"] == ('{"name": "Ann"}', 2)
    assert (report.written, report.superseded) == (2, 2)


async def test_import_replaces_a_value_as_a_whole(database: Database, clock: FakeClock) -> None:
    tree = '{"profiles": {"ann": {"b": {"x": 1}}}}'
    await _publish(
        database, NewChange("user:ann", "profile", '{"a": 1, "b": {"y": 2}}', source_time=BEGUN - timedelta(days=1))
    )

    await _import(database, clock, tree)

    assert (await _feed(database))["user:ann", "profile"][0] == '{"b": {"x": 1}}'


async def test_present_members_devices_and_preferences_stay(database: Database, clock: FakeClock) -> None:
    await _import(database, clock, TREE)
    async with database.transaction() as conn:
        await conn.execute("UPDATE scope_members SET role = 'READER' WHERE user_id = 'ann'")
        await conn.execute("UPDATE preferences SET max_per_day = 9")
        await conn.execute("UPDATE devices SET device_id = 'phone'")

    report = await _import(database, clock, TREE)

    assert report.changed == 0
    async with database.connection() as conn:
        assert {one.role for one in await member_rows.list_scopes(conn, APP, "ann", "", 9)} == {"READER"}
    assert await _table(database, "SELECT max_per_day FROM preferences") == [{"max_per_day": 9}]
    assert await _table(database, "SELECT device_id FROM devices") == [{"device_id": "phone"}]


def _many(count: int) -> str:
    return json_text({"profiles": {f"u{number}": {"n": number} for number in range(count)}})


async def test_import_goes_on_exactly_where_it_was_killed(database: Database, clock: FakeClock) -> None:
    tree = _many(100)
    seen: list[Progress] = []

    def die_after(places: int) -> Callable[[Progress], None]:
        def on_progress(progress: Progress) -> None:
            seen.append(progress)
            if progress.places >= places:
                raise _Killed

        return on_progress

    for places in (1, 20, 50):
        with pytest.raises(_Killed):
            await _import(database, clock, tree, on_progress=die_after(places))
    report = await _import(database, clock, tree, on_progress=seen.append)

    assert (report.written, report.unchanged) == (100, 0)
    assert [one.places for one in seen] == sorted({one.places for one in seen})
    assert len(await _feed(database)) == 100
    assert await _table(database, "SELECT DISTINCT sequence FROM changes") == [{"sequence": 1}]


async def test_lost_connections_are_made_up_for(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    source = ImportSource(parse_map(MAP), APP, BEGUN)
    importer = Importer(database, SystemClock(), source, "0" * 64, lambda _: DEFAULT_PRIOR, SMALL)
    batches = 0

    async def cut_off() -> None:
        for place in range(5, 45, 10):
            await wait_until(functools.partial(lambda least: batches > least, place))
            await run_sql(
                database_urls.admin_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'syncbeat_app'",
            )

    def count(_: Progress) -> None:
        nonlocal batches
        batches += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(cut_off())
        run = tasks.create_task(importer.run(io.BytesIO(_many(400).encode()), "export.json", count))

    assert run.result().written == 400
    assert len(await _feed(database)) == 400
    assert await _table(database, "SELECT DISTINCT sequence FROM changes") == [{"sequence": 1}]


async def test_two_processes_do_not_run_one_import(database: Database, clock: FakeClock) -> None:
    tree = _many(200)

    ends = await asyncio.gather(*(_import(database, clock, tree) for _ in range(2)), return_exceptions=True)

    (failed,) = (one for one in ends if isinstance(one, BaseException))
    assert isinstance(failed, ConfigurationError)
    assert "another process runs this import" in str(failed)
    (report,) = (one for one in ends if isinstance(one, ImportReport))
    assert report.written == 200
    assert len(await _feed(database)) == 200


async def test_value_too_large_in_the_form_of_postgresql_is_told(database: Database, clock: FakeClock) -> None:
    # Under a mebibyte as text, and above it in the form of PostgreSQL.
    large: dict[str, Json] = {str(10_000_000 + number): 1 for number in range(60_000)}
    tree = json_text({"profiles": {"a": {"n": 1}, "b": large, "c": {"n": 2}, "d": "x" * ((1 << 20) - 12)}})

    report = await _import(database, clock, tree)

    assert report.written == 3, "also the largest text that fits"
    assert [(reason, one.example) for (_, reason), one in report.misfits.items()] == [
        (MisfitReason.TOO_LARGE, "profiles/b")
    ]
    assert {key[0] for key in await _feed(database)} == {"user:a", "user:c", "user:d"}


async def test_limits_of_scopes_and_devices_hold(database: Database, clock: FakeClock) -> None:
    most = int(MEMBERS_OF_SCOPE.bound.capacity)
    async with database.transaction() as conn:
        await append(conn, [Append(APP, (NewChange("chat:c", "k", "1"),))], lambda _: DEFAULT_PRIOR, create_scopes=True)
        await conn.execute(
            "INSERT INTO scope_members (app_id, user_id, scope, role, added_at) "
            "SELECT $1, 'live' || n, 'chat:c', 'READER', now() FROM generate_series(1, $2) n",
            APP,
            most - 10,
        )
    members: dict[str, Json] = {f"u{number}": True for number in range(13)}
    tokens: dict[str, Json] = {f"tok{number}": "ios" for number in range(DEVICES_PER_USER + 2)}

    report = await _import(
        database, clock, json_text({"chats": {"c": {"members": members}}, "tokens": {"ann": tokens}})
    )

    assert (report.members, report.devices) == (10, DEVICES_PER_USER)
    assert {reason: one.count for (_, reason), one in report.misfits.items()} == {
        MisfitReason.REFUSED_SCOPE_FULL: 3,
        MisfitReason.REFUSED_USER_FULL: 2,
    }


async def test_broken_export_keeps_what_is_done_and_says_so(database: Database, clock: FakeClock) -> None:
    with pytest.raises(ConfigurationError, match="the export is no JSON document"):
        await _import(database, clock, _many(50)[:-40])

    assert len(await _feed(database)) >= 40


async def test_random_trees_come_back_from_the_feed(database: Database, clock: FakeClock) -> None:
    number = itertools.count()
    trees: list[Json] = []

    @settings(max_examples=40)
    @given(TREES)
    def draw(tree: Json) -> None:
        trees.append(tree)

    draw()
    for tree in trees:
        rules = WHOLE.replace("top:{top}", f"{next(number)}:{{top}}")
        report = await _import(database, clock, json_text(exported(tree)), rules)

        back: dict[Path, Json] = {}
        for (scope, key), (text, _) in (await _feed(database)).items():
            path = path_of_value(parse_map(rules), scope, key)
            if path is not None and text is not None:
                value = canonical(json.loads(text, parse_float=Decimal))
                assert value is not None
                back[path] = value
        assert back == entries_of(tree, 2)
        assert report.written == len(back)
        if back:
            assert entries_of(tree_of(back), 2) == back
