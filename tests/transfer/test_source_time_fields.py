"""Source times that a field beside the value says are in an export too, which imports and compares as the same tree."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import NewChange
from syncbeat_server.transfer.compare.mending import feed_writer
from syncbeat_server.transfer.export.app_document import AppSelection
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import Json
from syncbeat_server.transfer.rtdb.shapes import canonical, exported, json_text
from tests.support.databases import DatabaseUrls, open_database
from tests.support.rtdb_trees import KEYS, VALUES
from tests.support.transfers import Comparing, exact, exported_tree, store_export

pytestmark = pytest.mark.store

AT = datetime(2026, 11, 1, tzinfo=UTC)
MILLISECONDS_AT = int(AT.timestamp()) * 1_000
META = parse_map(
    """
    version = 1
    [[value]]
    path = "chats/{chat}/meta"
    scope = "chat:{chat}"
    key = "meta"
    part = "public"
    source_time = { field = "updatedAt", unit = "ms" }
    [[value]]
    path = "chats/{chat}/meta"
    scope = "chat:{chat}"
    key = "topic"
    part = "topic"
    source_time = { field = "updatedAt", unit = "ms" }
    [[value]]
    path = "pages/{page}"
    scope = "page:{page}"
    key = "text"
    part = "text"
    source_time = { field = "info/at", unit = "iso" }
    [[value]]
    path = "marks/{mark}"
    scope = "marks"
    key = "{mark}"
    part = "place/now"
    source_time = { field = "place/at", unit = "s" }
    [[value]]
    path = "notes/{note}"
    scope = "notes"
    key = "note:{note}"
    part = "body"
    source_time = { field = "body/at" }
    [[value]]
    path = "posts/{post}"
    scope = "posts"
    key = "post:{post}"
    part = "body"
    source_time = { field = "head/at" }
    [[value]]
    path = "posts/{post}"
    scope = "posts"
    key = "head:{post}"
    part = "head"
    """
)
TREE = """
{"chats": {"c1": {"meta": {"public": {"title": "One"}, "topic": "x", "updatedAt": 1700000000123}}},
 "marks": {"a": {"place": {"now": 5, "at": 1700000000.25}}},
 "notes": {"n": {"body": {"text": "hi", "at": 1700000000000}}},
 "pages": {"p": {"text": ["a", "b"], "info": {"at": "2023-11-14T22:13:20.000Z"}}},
 "posts": {"q": {"body": "b", "head": {"at": 1700000000000, "by": "ann"}}}}
"""


async def test_source_time_fields_come_back(database: Database) -> None:
    report = await store_export(database, TREE, META, AT)
    assert report.misfit_total == 0
    counts, text = await exported_tree(database, META)
    assert canonical(exact(text)) == canonical(exact(TREE))
    assert (counts.entries, counts.outside, counts.empty) == (7, 0, 0)
    again = await store_export(database, text, META, AT + timedelta(days=1))
    assert (again.misfit_total, again.changed, again.unchanged) == (0, 0, 7)


async def test_source_time_field_is_the_latest_of_its_values(database: Database) -> None:
    await store_export(database, TREE, META, AT)
    writes = feed_writer(database, "default")
    await writes([NewChange("chat:c1", "topic", '"new"', source_time=AT)])
    _, text = await exported_tree(database, META)
    assert json.loads(text)["chats"]["c1"]["meta"] == {
        "public": {"title": "One"},
        "topic": "new",
        "updatedAt": MILLISECONDS_AT,
    }


async def test_source_time_field_of_a_value_without_source_time_is_its_change(database: Database) -> None:
    await feed_writer(database, "default")([NewChange("chat:c2", "meta", '{"title": "New"}')])
    async with database.connection() as conn:
        changed_at = await conn.fetchval("SELECT changed_at FROM changes")
    _, text = await exported_tree(database, META)
    written = exact(text)["chats"]["c2"]["meta"]["updatedAt"]
    assert written * 1_000 == (changed_at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert (await store_export(database, text, META, datetime(2100, 1, 1, tzinfo=UTC))).misfit_total == 0


async def test_reconcile_is_the_way_back_of_a_value_whose_time_stands_beside_it(database: Database) -> None:
    await store_export(database, TREE, META, AT)
    _, before = await exported_tree(database, META)
    later = AT + timedelta(hours=1)
    await feed_writer(database, "default")([NewChange("chat:c1", "meta", '{"title": "Wrong"}', source_time=later)])
    back = Comparing(database, before, META, later + timedelta(hours=1))
    assert await back.told() == {("chats/c1/meta/public", "differs", False)}
    assert await back.reconcile() == {"WRITTEN": 1}
    assert await back.differences() == []
    _, after = await exported_tree(database, META)
    assert exact(after)["chats"]["c1"]["meta"]["public"] == {"title": "One"}


@pytest.mark.parametrize("beside", ["", ', "updatedAt": "soon"', ', "updatedAt": -1'])
async def test_comparison_reads_no_source_times(database: Database, beside: str) -> None:
    await feed_writer(database, "default")([NewChange("chat:c1", "meta", '{"title": "Wrong"}', source_time=AT)])
    text = f'{{"chats": {{"c1": {{"meta": {{"public": {{"title": "One"}}{beside}}}}}}}}}'
    comparing = Comparing(database, text, META, AT + timedelta(hours=1))
    assert await comparing.told() == {("chats/c1/meta/public", "differs", False)}
    assert comparing.export is not None
    assert not comparing.export.misfits
    assert await comparing.reconcile() == {"WRITTEN": 1}
    assert await comparing.differences() == []


TIMES: st.SearchStrategy[Json] = st.one_of(
    st.integers(0, MILLISECONDS_AT),
    st.decimals(min_value=0, max_value=MILLISECONDS_AT, places=3).map(lambda one: one.normalize() + Decimal(0)),
)
METAS: st.SearchStrategy[Json] = st.fixed_dictionaries({"public": VALUES, "updatedAt": TIMES})
CHAT: st.SearchStrategy[Json] = st.fixed_dictionaries({"meta": METAS})
CHATS: st.SearchStrategy[Json] = st.dictionaries(KEYS, CHAT, min_size=1, max_size=4)


def test_random_trees_with_source_time_fields_come_back(database_urls: DatabaseUrls) -> None:
    with asyncio.Runner() as runner:
        opening = open_database(database_urls.app_url, size=1, name="test")
        database = runner.run(opening.__aenter__())
        apps = iter(range(10**6))
        try:

            @settings(max_examples=40)
            @given(CHATS)
            def check(chats: Json) -> None:
                runner.run(comes_back(database, {"chats": chats}, f"app{next(apps)}"))

            check()
        finally:
            runner.run(opening.__aexit__(None, None, None))


async def comes_back(database: Database, tree: Json, app_id: str) -> None:
    text = json_text(exported(tree))
    assert (await store_export(database, text, META, AT, app_id)).misfit_total == 0
    _, found = await exported_tree(database, META, AppSelection(app_id))
    assert exact(found) == exact(text)
    comparing = Comparing(database, found, META, AT, app_id)
    assert await comparing.differences() == []
