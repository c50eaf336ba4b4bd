"""Trees that were imported by a map are exported as the same trees, in the form of the Realtime Database."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import NewChange
from syncbeat_server.transfer.compare.mending import feed_writer
from syncbeat_server.transfer.export.app_document import AppSelection
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import Json
from syncbeat_server.transfer.rtdb.shapes import canonical, exported, json_text
from tests.support.databases import DatabaseUrls, open_database
from tests.support.rtdb_trees import TREES, entries_of, tree_of
from tests.support.transfers import Comparing, exact, exported_tree, store_export

pytestmark = pytest.mark.store

AT = datetime(2026, 11, 1, tzinfo=UTC)
EVERYTHING = parse_map(
    """
    version = 1
    [[value]]
    path = "{top}/{key}"
    scope = "top:{top}"
    key = "k:{key}"
    """
)
CHATS = parse_map(
    """
    version = 1
    unescape_keys = true
    [[value]]
    path = "chats/{chat}/messages/{message}"
    scope = "chat:{chat}"
    key = "messages/{message}"
    [[value]]
    path = "chats/{chat}/meta"
    scope = "chat:{chat}"
    key = "title"
    part = "title"
    [[value]]
    path = "chats/{chat}/meta"
    scope = "chat:{chat}"
    key = "topic"
    part = "topic"
    [[member]]
    path = "chats/{chat}/members/{user}"
    scope = "chat:{chat}"
    user = "{user}"
    """
)
TREE = """
{"chats": {
  "1": {"messages": {"-JhLeOlGIEjaIOFHR0xd": {"text": "hé 😀", "n": 1.10}, "a%2Eb": "x"},
        "meta": {"title": "One", "topic": [null, 2, 12345678901234567]}, "members": {"ann": true, "bob": true}},
  "2": {"messages": {"m": {"seen": {"ann": true}, "big": 1e300, "deep": {"a": {"b": [1, 2]}}}}}
}}
"""


def test_random_trees_come_back_from_the_database(database_urls: DatabaseUrls) -> None:
    numbers = iter(range(10**6))

    with asyncio.Runner() as runner:
        opening = open_database(database_urls.app_url, size=1, name="test")
        database = runner.run(opening.__aenter__())
        try:

            @settings(max_examples=40)
            @given(TREES)
            def check(tree: Json) -> None:
                runner.run(comes_back(database, tree, f"app{next(numbers)}"))

            check()
        finally:
            runner.run(opening.__aexit__(None, None, None))


async def comes_back(database: Database, tree: Json, app_id: str) -> None:
    text = json_text(exported(tree))
    await store_export(database, text, EVERYTHING, AT, app_id)
    counts, found = await exported_tree(database, EVERYTHING, AppSelection(app_id))
    inner = entries_of(tree, 2)
    # Of what the map takes, which is all that is two levels deep, nothing else is in the tree, arrays included.
    expected = exported(tree_of(inner)) if inner else None
    assert exact(found) == exact(json_text(expected))
    assert (counts.entries, counts.outside, counts.empty) == (len(inner), 0, 0)
    comparing = Comparing(database, text, EVERYTHING, AT, app_id)
    assert await comparing.differences() == []
    assert comparing.count() == (len(inner), len(inner))


async def test_tree_export_is_the_tree_of_the_import(database: Database) -> None:
    await store_export(database, TREE, CHATS, AT)
    counts, text = await exported_tree(database, CHATS)
    assert canonical(exact(text)) == canonical(exact(TREE))
    # As the Realtime Database does it: an object with keys 1 and 2 is an array whose first element is null.
    chats = json.loads(text)["chats"]
    assert chats[0] is None
    assert chats[1]["meta"]["topic"] == [None, 2, 12345678901234567]
    assert '"n":1.1' in text
    assert (counts.outside, counts.empty) == (0, 0)


async def test_tree_export_selects_a_scope_or_the_scopes_of_a_user(database: Database) -> None:
    await store_export(database, TREE, CHATS, AT)
    _, of_scope = await exported_tree(database, CHATS, AppSelection("default", scope="chat:2"))
    assert json.loads(of_scope)["chats"].keys() == {"2"}
    _, of_user = await exported_tree(database, CHATS, AppSelection("default", user_id="ann"))
    assert json.loads(of_user)["chats"].keys() == {"1"}
    _, nothing = await exported_tree(database, CHATS, AppSelection("default", user_id="nobody"))
    assert nothing == "null\n"


async def test_tree_export_tells_of_what_has_no_place_in_the_tree(database: Database) -> None:
    await store_export(database, TREE, CHATS, AT)
    changes = [
        NewChange("elsewhere", "k", "1", source_time=AT),
        NewChange("chat:1", "messages/empty", "{}", source_time=AT),
        NewChange("chat:1", "messages/list", "[]", source_time=AT),
        NewChange("chat:1", "messages/m", "1", source_time=AT),
        NewChange("chat:1", "messages/m", "", deleted=True, source_time=AT.replace(day=2)),
    ]
    await feed_writer(database, "default")(changes)
    counts, text = await exported_tree(database, CHATS)
    assert (counts.outside, counts.empty) == (1, 2)
    assert canonical(exact(text)) == canonical(exact(TREE))


async def test_tree_export_orders_long_arrays_by_number(database: Database) -> None:
    items = [{"n": number} for number in range(25)]
    text = json.dumps({"list": items})
    await store_export(database, text, EVERYTHING, AT)
    _, found = await exported_tree(database, EVERYTHING)
    assert json.loads(found) == {"list": items}


async def test_tree_export_of_a_membership_above_a_value_has_each_key_once(database: Database) -> None:
    nicknames = parse_map(
        """
        version = 1
        [[member]]
        path = "members/{chat}/{user}"
        scope = "chat:{chat}"
        user = "{user}"
        [[value]]
        path = "members/{chat}/{user}"
        scope = "chat:{chat}"
        key = "nick:{user}"
        part = "nick"
        """
    )
    text = '{"members": {"c": {"ann": {"nick": "A"}, "bob": true}}}'
    await store_export(database, text, nicknames, AT)
    _, found = await exported_tree(database, nicknames)
    pairs = json.loads(found, object_pairs_hook=list)
    assert pairs == [("members", [("c", [("ann", [("nick", "A")]), ("bob", True)])])]
