"""A comparison finds each difference and no other, and mending it writes that difference and nothing else."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import NewChange
from syncbeat_server.transfer.compare.mending import feed_writer
from syncbeat_server.transfer.compare.spool import EntryKind, open_spool
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import MisfitReason
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.transfers import Comparing, store_export

pytestmark = pytest.mark.store

IMPORTED = datetime(2026, 11, 1, tzinfo=UTC)
LATER = IMPORTED + timedelta(days=1)
CHATS = parse_map(
    """
    version = 1
    [[value]]
    path = "chats/{chat}/messages/{message}"
    scope = "chat:{chat}"
    key = "messages/{message}"
    [[member]]
    path = "chats/{chat}/members/{user}"
    scope = "chat:{chat}"
    user = "{user}"
    [[device]]
    path = "tokens/{user}/{device}"
    user = "{user}"
    device = "{device}"
    token = "{.token}"
    platform = "IOS"
    [[preferences]]
    path = "settings/{user}"
    user = "{user}"
    max_per_day = "most"
    """
)
TREE: dict[str, Any] = {
    "chats": {
        "a": {"messages": {"1": {"text": "one"}, "2": "two", "3": 3, "4": [1, [2]]}, "members": {"ann": True}},
        "b": {
            "messages": {"1": "\N{LATIN SMALL LETTER E WITH ACUTE}", "9007199254740993": 9007199254740993},
            "members": {"ann": True, "bob": True},
        },
    }
}


async def publish(database: Database, key: str, value: str | None, at: datetime | None, scope: str = "chat:a") -> None:
    change = NewChange(scope, f"messages/{key}", value or "", deleted=value is None, source_time=at)
    await feed_writer(database, "default")([change])


async def feed(urls: DatabaseUrls) -> dict[tuple[str, str], Any]:
    """All of the feed: by scope and key the sequence, value, tombstone and source time."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        rows = await conn.fetch("SELECT scope, key, sequence, value::text, deleted, source_time FROM changes")
        return {(scope, key): rest for scope, key, *rest in rows}
    finally:
        await conn.close()


async def test_verify_finds_nothing_after_an_import(database: Database) -> None:
    text = json.dumps(TREE)
    await store_export(database, text, CHATS, IMPORTED)
    comparing = Comparing(database, text, CHATS, IMPORTED)
    assert await comparing.told() == set()
    assert comparing.count() == (6, 6)
    assert comparing.count(EntryKind.MEMBER) == (3, 3)
    shuffled = {
        "chats": {
            chat: {"messages": dict(reversed(of["messages"].items())), "members": of["members"]}
            for chat, of in reversed(TREE["chats"].items())
        }
    }
    assert await Comparing(database, json.dumps(shuffled), CHATS).told() == set()


async def test_verify_tells_each_difference_by_its_path(database: Database) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    other = json.loads(json.dumps(TREE))
    messages = other["chats"]["a"]["messages"]
    messages["1"] = {"text": "One"}
    del messages["2"]
    messages["5"] = {}
    messages["6"] = "new"
    messages["3"] = 3.0
    messages["4"] = {"0": 1, "1": {"0": 2}}
    other["chats"]["b"]["messages"]["1"] = "e\N{COMBINING ACUTE ACCENT}"
    other["chats"]["b"]["messages"]["9007199254740993"] = 9007199254740992
    other["chats"]["b"]["members"] = {"ann": True, "cid": True}
    other["elsewhere"] = 1
    comparing = Comparing(database, json.dumps(other), CHATS)
    assert await comparing.told() == {
        ("chats/a/messages/1", "differs", False),
        ("chats/a/messages/2", "missing in the export", False),
        ("chats/a/messages/6", "missing here", False),
        ("chats/b/messages/1", "differs", False),
        ("chats/b/messages/9007199254740993", "differs", False),
        ("chats/b/members/bob", "missing in the export", False),
        ("chats/b/members/cid", "missing here", False),
    }
    assert comparing.export is not None
    assert {pattern for pattern, _ in comparing.export.misfits} == {"elsewhere"}


async def test_verify_tells_members_whose_role_the_map_cannot_make(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    await run_sql(
        database_urls.admin_url,
        "UPDATE scope_members SET role = 'READER' WHERE scope = 'chat:b' AND user_id = 'bob'",
        "INSERT INTO scope_members (app_id, scope, user_id, role, added_at)"
        " SELECT app_id, scope, 'eve', 'READER', added_at FROM scope_members WHERE scope = 'chat:a'",
    )
    comparing = Comparing(database, json.dumps(TREE), CHATS)
    assert await comparing.told() == {
        ("chats/b/members/bob", "differs", False),
        ("chats/a/members/eve", "missing in the export", False),
    }
    assert comparing.count(EntryKind.MEMBER) == (4, 3)


async def test_verify_names_members_by_the_path_of_their_role(database: Database, database_urls: DatabaseUrls) -> None:
    by_role = parse_map(
        """
        version = 1
        [[member]]
        path = "writers/{chat}/{user}"
        scope = "chat:{chat}"
        user = "{user}"
        [[member]]
        path = "readers/{chat}/{user}"
        scope = "chat:{chat}"
        user = "{user}"
        role = "READER"
        """
    )
    await store_export(database, '{"readers": {"a": {"ann": true}}}', by_role, IMPORTED)
    later = {"writers": {"a": {"bob": True}}, "readers": {"a": {"cid": True}}}
    assert await Comparing(database, json.dumps(later), by_role).told() == {
        ("readers/a/ann", "missing in the export", False),
        ("writers/a/bob", "missing here", False),
        ("readers/a/cid", "missing here", False),
    }


@pytest.mark.parametrize(("there", "told"), [("false", "missing in the export"), ('"owner"', None)])
async def test_verify_takes_a_role_that_does_not_fit_for_no_absence(
    database: Database, there: str, told: str | None
) -> None:
    by_role = parse_map(
        """
        version = 1
        [[member]]
        path = "members/{chat}/{user}"
        scope = "chat:{chat}"
        user = "{user}"
        role = "{.}"
        roles = { true = "WRITER" }
        """
    )
    text = '{"members": {"a": {"ann": true}}}'
    await store_export(database, text, by_role, IMPORTED)
    expected = set() if told is None else {("members/a/ann", told, False)}
    assert await Comparing(database, text.replace("true", there), by_role).told() == expected


async def test_verify_compares_devices_and_preferences(database: Database, database_urls: DatabaseUrls) -> None:
    tree = {
        "tokens": {"ann": {"d1": {"token": "t1"}, "d2": {"token": "t2"}, "d3": {"token": "t3"}}},
        "settings": {"ann": {"most": 3}, "bob": {"most": 5}, "cid": {"most": 1}},
    }
    await run_sql(
        database_urls.admin_url,
        """INSERT INTO devices (app_id, user_id, device_id, platform, registration_token, token_digest, token_state,
                                token_registered_at, registered_at, updated_at)
           SELECT 'default', 'ann', device, 'IOS', token, token::bytea, 'ACTIVE', t, t, t
           FROM (VALUES ('d1', 't1'), ('d2', 'other')) AS k (device, token),
                (SELECT timestamptz '2026-11-01') AS at (t)""",
        """INSERT INTO preferences (app_id, user_id, max_per_day, updated_at)
           VALUES ('default', 'ann', 3, '2026-11-01'), ('default', 'bob', 4, '2026-11-03')""",
    )
    assert await Comparing(database, json.dumps(tree), CHATS, LATER).told() == {
        ("(device)/ann/d2", "differs", False),
        ("(device)/ann/d3", "missing here", False),
        ("(preferences)/bob", "differs", True),
        ("(preferences)/cid", "missing here", False),
    }


async def test_verify_counts_what_is_newer_here_apart(database: Database) -> None:
    text = json.dumps(TREE)
    await store_export(database, text, CHATS, IMPORTED)
    after = LATER + timedelta(seconds=1)
    await publish(database, "1", '"newer"', after)
    await publish(database, "2", None, after)
    await publish(database, "7", '"born later"', after)
    await publish(database, "3", '"older"', LATER - timedelta(seconds=61))
    await publish(database, "4", '"by a clock that is behind"', LATER - timedelta(seconds=59))
    assert await Comparing(database, text, CHATS, LATER).told() == {
        ("chats/a/messages/1", "differs", True),
        ("chats/a/messages/2", "missing here", True),
        ("chats/a/messages/7", "missing in the export", True),
        ("chats/a/messages/3", "differs", False),
        ("chats/a/messages/4", "differs", True),
    }
    without_time = await Comparing(database, text, CHATS).told()
    assert {newer for *_, newer in without_time} == {False}


async def test_reconcile_mends_the_differences_and_nothing_else(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    after = LATER + timedelta(seconds=1)
    await publish(database, "3", '"newer"', after)
    await publish(database, "8", '"born later"', after)
    await publish(database, "2", None, IMPORTED + timedelta(seconds=1))
    await publish(database, "outside", "1", None, scope="elsewhere")
    later = json.loads(json.dumps(TREE))
    later["chats"]["a"]["messages"] |= {"1": {"text": "changed"}, "9": "new", "3": "lost"}
    del later["chats"]["b"]["messages"]["1"]
    before = await feed(database_urls)

    comparing = Comparing(database, json.dumps(later), CHATS, LATER)
    assert await comparing.reconcile() == {"WRITTEN": 4}

    found = await feed(database_urls)
    mended = {
        ("chat:a", "messages/1"): '{"text": "changed"}',
        ("chat:a", "messages/2"): '"two"',
        ("chat:a", "messages/9"): '"new"',
        ("chat:b", "messages/1"): None,
    }
    assert {key: rest for key, rest in found.items() if key not in mended} == {
        key: rest for key, rest in before.items() if key not in mended
    }
    for key, value in mended.items():
        _, stored, deleted, source_time = found[key]
        assert (stored, deleted, source_time) == (value, value is None, LATER - timedelta(seconds=60))
    assert {newer for *_, newer in await comparing.told()} == {True}
    again = Comparing(database, json.dumps(later), CHATS, LATER)
    assert await again.reconcile() == {}
    assert await feed(database_urls) == found


async def test_reconcile_deletes_nothing_of_which_the_export_has_what_does_not_fit(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    before = await feed(database_urls)
    later = json.loads(json.dumps(TREE))
    later["chats"]["a"]["messages"] |= {"1": {"text": "x" * (4 << 20)}, "2": {"text": "x" * (1 << 20)}, "3": "\0"}
    comparing = Comparing(database, json.dumps(later), CHATS, LATER)
    assert await comparing.told() == set()
    assert await comparing.reconcile() == {}
    assert await feed(database_urls) == before


async def test_reconcile_deletes_no_key_that_no_export_can_have(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    for key in ("x/y", "y.z"):
        await publish(database, key, '"of an app that knows no RTDB"', IMPORTED)
    before = await feed(database_urls)
    comparing = Comparing(database, json.dumps(TREE), CHATS, LATER)
    assert await comparing.told() == set()
    assert await comparing.reconcile() == {}
    assert await feed(database_urls) == before


@pytest.mark.parametrize("part", ["null", "{}", '{"chats": {"a": {"members": {"ann": true}}}}', None])
async def test_reconcile_deletes_nothing_of_rules_of_which_the_export_has_no_entry(
    database: Database, database_urls: DatabaseUrls, part: str | None
) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    before = await feed(database_urls)
    comparing = Comparing(database, json.dumps(TREE["chats"]) if part is None else part, CHATS, LATER)
    assert await comparing.reconcile() == {}
    assert await feed(database_urls) == before
    assert comparing.verification is not None
    assert comparing.verification.kept == {"chats/{chat}/messages/{message}": 6}


async def test_reconcile_leaves_what_is_written_while_it_runs(database: Database) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    later = json.loads(json.dumps(TREE))
    later["chats"]["a"]["messages"] |= {"1": "changed", "2": "changed"}
    comparing = Comparing(database, json.dumps(later), CHATS, LATER)
    writes = feed_writer(database, "default")
    assert len(await comparing.differences()) == 2
    outcomes = await writes([NewChange("chat:a", "messages/1", '"live"', source_time=LATER + timedelta(seconds=1))])
    assert [str(outcome) for outcome in outcomes] == ["WRITTEN"]
    late = await writes([NewChange("chat:a", "messages/1", '"changed"', source_time=LATER)])
    assert [str(outcome) for outcome in late] == ["SUPERSEDED"]
    assert await comparing.reconcile() == {"WRITTEN": 1}


async def test_reconcile_leaves_what_a_clock_that_is_behind_makes_while_it_runs(
    database: Database, database_urls: DatabaseUrls
) -> None:
    await store_export(database, json.dumps(TREE), CHATS, IMPORTED)
    comparing = Comparing(database, json.dumps(TREE).replace('"two"', '"changed"'), CHATS, LATER)
    with open_spool(None) as spool:
        found = await comparing.differences(spool)
        await publish(database, "2", '"live"', LATER - timedelta(seconds=59))
        assert await comparing.mend(found, spool) == {"SUPERSEDED": 1}
    assert (await feed(database_urls))["chat:a", "messages/2"][1] == '"live"'


async def test_verify_finds_one_planted_difference_in_many_scopes(database: Database) -> None:
    drawn = random.Random(24)
    tree = {
        "chats": {
            f"c{chat}": {"messages": {f"m{drawn.randrange(10**9)}": {"n": drawn.random()} for _ in range(40)}}
            for chat in range(50)
        }
    }
    await store_export(database, json.dumps(tree), CHATS, IMPORTED)
    comparing = Comparing(database, json.dumps(tree), CHATS, LATER)
    assert await comparing.told() == set()
    assert comparing.count() == (2_000, 2_000)
    planted = tree["chats"]["c31"]["messages"]
    key = sorted(planted)[7]
    planted[key]["n"] += 2**-40
    assert await Comparing(database, json.dumps(tree), CHATS, LATER).told() == {
        (f"chats/c31/messages/{key}", "differs", False)
    }


async def test_value_larger_than_the_feed_takes_is_not_compared(database: Database) -> None:
    # Under a mebibyte as text, and above it in the form of PostgreSQL.
    large = {str(10_000_000 + number): 1 for number in range(60_000)}
    text = json.dumps({"chats": {"a": {"messages": {"large": large, "small": 1}}}})
    report = await store_export(database, text, CHATS, IMPORTED)
    assert report.written == 1
    comparing = Comparing(database, text, CHATS)
    assert await comparing.differences() == []
    assert comparing.export is not None
    assert {reason for _, reason in comparing.export.misfits} == {MisfitReason.TOO_LARGE}
