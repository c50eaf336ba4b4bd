"""The change feed is written whole or not at all: sequences, expectations, merges."""

from __future__ import annotations

import asyncio
import json

import orjson
import pytest

from syncbeat_server.errors import InvalidRequest, SequenceMismatch, SyncbeatError
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import Append, AppendResult, append
from syncbeat_server.sync.model import NewChange, Signal
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.sync.policy.scope_signal import initial_signal, signal_after_change
from syncbeat_server.sync.store import member_scopes
from tests.support.build import APP
from tests.support.fake_clock import FakeClock
from tests.support.seed import rows_of, value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

# RFC 7396, appendix A: (original, patch, result). An original of None: the key is not there yet.
MERGES = [
    ('{"a":"b"}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}'),
    ('{"a":"b"}', '{"a":null}', "{}"),
    ('{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}'),
    ('{"a":["b"]}', '{"a":"c"}', '{"a":"c"}'),
    ('{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}'),
    ('{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}'),
    ('{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}'),
    ('["a","b"]', '["c","d"]', '["c","d"]'),
    ('{"a":"b"}', '["c"]', '["c"]'),
    ('{"a":"foo"}', "null", "null"),
    ('{"a":"foo"}', '"bar"', '"bar"'),
    ('{"e":null}', '{"a":1}', '{"a":1}'),  # our originals are results of patches, which hold no null
    ("[1,2]", '{"a":"b","c":null}', '{"a":"b"}'),
    ("{}", '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}'),
    (None, '{"a":1,"b":null}', '{"a":1}'),
    (None, '{"a":[null]}', '{"a":[null]}'),
    ('{"a":1,"b":{"c":1}}', '{"b":2,"n":[1,[2]]}', '{"a":1,"b":2,"n":[1,[2]]}'),
    ('{"a":1}', '{"a":"{","b":"null"}', '{"a":"{","b":"null"}'),
    ('"text"', '{"a":1}', '{"a":1}'),
    ('{"a":1}', '"{"', '"{"'),
    ('{"a":1}', ' {"b":2,"b":3}', '{"a":1,"b":3}'),
]


def put(key: str, patch: object = None, *, scope: str = "s", expected: int | None = None) -> NewChange:
    return NewChange(scope, key, json.dumps({} if patch is None else patch), expected_sequence=expected)


async def write(
    database: Database, *calls: tuple[NewChange, ...], create: bool = True
) -> list[AppendResult | SyncbeatError]:
    async with database.transaction() as conn:
        return await append(conn, [Append(APP, call) for call in calls], lambda _: DEFAULT_PRIOR, create_scopes=create)


def sequences(result: AppendResult | SyncbeatError) -> tuple[int, ...]:
    assert isinstance(result, AppendResult), result
    return result.sequences


async def feed(database: Database, scope: str = "s") -> dict[str, tuple[int, object]]:
    rows = await rows_of(
        database, "SELECT key, sequence, value::text FROM changes WHERE scope = $1 ORDER BY sequence", scope
    )
    return {key: (sequence, None if value is None else json.loads(value)) for key, sequence, value in rows}


@pytest.mark.parametrize(("original", "patch", "result"), MERGES)
async def test_merge_patch_follows_rfc_7396(database: Database, original: str | None, patch: str, result: str) -> None:
    if original is not None:
        await write(database, (NewChange("s", "k", original),))
    await write(database, (NewChange("s", "k", patch),))
    assert (await feed(database))["k"][1] == json.loads(result)


async def test_sequence_is_next_of_its_scope(database: Database) -> None:
    first, second = await write(
        database, (put("a"), put("b"), put("a", scope="t")), (put("a", {"x": 1}), put("c", scope="t"))
    )
    assert sequences(first) == (1, 2, 1)
    assert sequences(second) == (3, 2)
    assert isinstance(second, AppendResult)
    assert [(head.scope, head.sequence) for head in second.heads] == [("s", 3), ("t", 2)]
    assert await rows_of(database, "SELECT scope, head FROM scopes ORDER BY 1") == [("s", 3), ("t", 2)]
    assert await feed(database) == {"b": (2, {}), "a": (3, {"x": 1})}


async def test_merge_of_changes_of_one_key_in_one_call(database: Database) -> None:
    (result,) = await write(database, (put("k", {"a": 1}), put("k", {"b": 2}), put("k", {"a": None})))
    assert sequences(result) == (1, 2, 3)
    assert await feed(database) == {"k": (3, {"b": 2})}


async def test_tombstone_then_patch_starts_from_nothing(database: Database) -> None:
    await write(database, (put("k", {"a": 1}), NewChange("s", "k", "", deleted=True)))
    assert await rows_of(database, "SELECT value, deleted, sequence FROM changes") == [(None, True, 2)]
    await write(database, (put("k", {"b": 1}),))
    assert await feed(database) == {"k": (3, {"b": 1})}
    assert await value_of(database, "SELECT deleted FROM changes") is False


async def test_expected_sequence_is_checked_against_the_key(database: Database) -> None:
    created, refused, updated, wrong = await write(
        database,
        (put("k", {"by": 1}, expected=0),),
        (put("k", {"by": 2}, expected=0),),
        (put("k", {"by": 3}, expected=1),),
        (put("new"), put("k", {"by": 4}, expected=1)),
    )
    assert (sequences(created), sequences(updated)) == ((1,), (2,))
    assert isinstance(refused, SequenceMismatch)
    assert refused.metadata == {"scope": "s", "key": "k", "sequence": "1"}
    assert isinstance(wrong, SequenceMismatch)
    assert await feed(database) == {"k": (2, {"by": 3})}  # and nothing of the call that failed


async def test_scope_missing_is_created_or_refused(database: Database) -> None:
    (refused,) = await write(database, (put("k"),), create=False)
    assert isinstance(refused, SyncbeatError)
    assert refused.reason == "ACCESS_DENIED"
    assert await value_of(database, "SELECT count(*) FROM scopes") == 0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"\\u0000"', "cannot be stored"),
        ("1e400000", "cannot be stored"),
        ('{"a":', "cannot be stored"),
        (json.dumps("x" * 1_100_000), "1 MiB"),
    ],
    ids=["nul", "huge number", "no JSON", "too large"],
)
async def test_value_postgres_cannot_store_is_the_callers_fault(database: Database, value: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as raised:
        await write(database, (NewChange("s", "k", value),))
    assert raised.value.violations[0].path == "changes"
    assert "x" * 100 not in raised.value.message
    assert await value_of(database, "SELECT count(*) FROM changes") == 0


async def test_value_size_limit_applies_after_merging(database: Database) -> None:
    piece = "x" * 500_000
    await write(database, (put("k", {"a": piece}),), (put("k", {"b": piece}),))
    with pytest.raises(InvalidRequest, match="1 MiB"):
        await write(database, (put("k", {"c": piece}),))


async def test_scope_signal_is_updated_by_changes(database: Database, clock: FakeClock) -> None:
    async def known() -> Signal:
        async with database.connection() as conn:
            (state,) = await member_scopes.scope_states(conn, [(APP, None, "s")])
        assert state is not None
        return state.signal

    made = clock.now().timestamp()
    await write(database, (put("a"), put("b"), put("c")), (put("d"),))
    expected = initial_signal(made)
    for _ in range(2):  # two commits, however many changes
        expected = signal_after_change(expected, DEFAULT_PRIOR, made)
    assert await known() == expected
    await clock.advance(600)
    await write(database, (put("a"),))
    after = signal_after_change(expected, DEFAULT_PRIOR, made + 600)
    assert await known() == after
    assert after.belief is not None
    assert after.belief.hot_count + after.belief.cold_count == pytest.approx(3.0, rel=0.01)


async def test_merge_cost_of_a_large_patch_is_linear(database: Database) -> None:
    """Key by key it would take minutes, and its callers' neighbours would wait for it."""
    patch = orjson.dumps({f"key {index}": index for index in range(20_000)}).decode()
    more = orjson.dumps({f"key {index}": {"a": None, "b": index} for index in range(10_000, 30_000)}).decode()
    async with asyncio.timeout(5), database.connection() as conn:
        query = "SELECT syncbeat_merge_patch(syncbeat_merge_patch(NULL, $1::text::jsonb), $2::text::jsonb)::text"
        merged = await conn.fetchval(query, patch, more)
    value = orjson.loads(merged)
    assert len(value) == 30_000
    assert (value["key 0"], value["key 29999"]) == (0, {"b": 29_999})
