"""SyncService: hints, publishing, the feed, streams."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import timedelta
from typing import Any

import grpc
import orjson
import pytest

from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat_server.auth.model import MAX_LEEWAY
from syncbeat_server.auth.tokens import mint
from tests.fakes import wait_until
from tests.rpc.clocks import HeldClock
from tests.rpc.conftest import DEADLINE_S, KEY, Caller, Server, refusal_of, running_server

S = "couple:1"
PACED = 1.1 / 0.9  # how far apart pacing puts two hints that are alike


def at(scope: str = S, sequence: int | None = None, epoch: str = "") -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope=scope, sequence=sequence, epoch=epoch)


def change(key: str = "k", value: object = 1, scope: str = S, **fields: Any) -> core_pb2.NewChange:
    patch = "" if fields.get("deleted") else orjson.dumps(value).decode()
    return core_pb2.NewChange(scope=scope, key=key, merge_patch_json=patch, **fields)


def publish(*changes: core_pb2.NewChange, **fields: Any) -> sync_service_pb2.PublishChangesRequest:
    return sync_service_pb2.PublishChangesRequest(changes=changes, **fields)


def hint_request(*cursors: core_pb2.ScopeCursor, **fields: Any) -> sync_service_pb2.GetHintRequest:
    return sync_service_pb2.GetHintRequest(device_id="phone", cursors=cursors, **fields)


async def feed(caller: Caller, cursor: core_pb2.ScopeCursor | None = None, **fields: Any) -> Any:
    return await caller(sync_service_pb2.ListChangesRequest(cursor=cursor or at(), **fields))


@pytest.fixture
async def ready(unstretched: None, server: Server) -> Server:
    """Alice and bob write one scope; alice has a phone."""
    await server.add(S, "alice", "bob")
    await server.register("alice", "phone")
    return server


# --------------------------------------------------------------------------------------------------------------- hints


async def test_a_hint_says_whether_there_is_news(ready: Server) -> None:
    alice = ready.user("alice")
    quiet = (await alice(hint_request())).hint
    assert not quiet.changed
    assert [(head.scope, head.sequence) for head in quiet.heads] == [(S, 0)]
    assert quiet.heads[0].epoch
    for expected in (1, 2, 3):
        assert await ready.publish(S, f"k{expected}") == expected
    hint = (await alice(hint_request(at(sequence=1)))).hint
    assert hint.changed
    assert hint.heads[0].sequence == 3
    epoch = hint.heads[0].epoch
    cases = [(at(), True), (at(sequence=3), False), (at(sequence=3, epoch=epoch), False)]
    cases += [(at(sequence=2, epoch=epoch), True), (at(sequence=3, epoch="another"), True), (at(sequence=0), True)]
    for cursor, changed in cases:
        assert (await alice(hint_request(cursor))).hint.changed is changed, cursor
    assert (await alice(hint_request())).hint.changed, "without cursors: that there are changes at all"


async def test_a_hint_is_whole(ready: Server) -> None:
    began = int(time.time())
    hint = (await ready.user("alice")(hint_request())).hint
    assert 10 < hint.poll_interval.seconds <= 60
    assert hint.priority == sync_service_pb2.PRIORITY_NORMAL
    assert hint.valid_duration.seconds >= 300
    assert began <= hint.next_poll_time.seconds - hint.poll_interval.seconds <= time.time() + 1
    assert not hint.explanation
    assert "expected to change" in (await ready.user("alice")(hint_request(explain=True))).hint.explanation


async def test_changes_and_attention_shorten_the_interval(ready: Server) -> None:
    alice, activity = ready.user("alice"), sync_service_pb2.Activity
    idle = activity(state=sync_service_pb2.ACTIVITY_STATE_BACKGROUND, battery_low=True)
    idle.idle_duration.seconds = 3600

    def in_seconds(hint: sync_service_pb2.Hint) -> float:
        return float(hint.poll_interval.seconds) + float(hint.poll_interval.nanos) / 1e9

    async def interval(**fields: Any) -> float:
        return in_seconds((await alice(hint_request(**fields))).hint)

    intervals = [await interval()]
    for index in range(3):
        await ready.publish(S, f"k{index}")
        intervals.append(await interval())
    assert all(later < PACED * earlier for earlier, later in itertools.pairwise(intervals))
    assert intervals[-1] < intervals[0] / 3
    looking = intervals[-1]
    assert await interval(activity=idle) > 2 * looking
    assert looking / PACED < await interval() < looking * PACED, "said for that hint alone"
    report = sync_service_pb2.ReportActivityRequest(device_id="phone", activity=idle)
    reported = in_seconds((await alice(report)).hint)
    assert reported > 2 * looking
    assert reported / PACED < await interval() < reported * PACED, "kept from here on"
    assert looking / PACED < await interval(activity=activity()) < looking * PACED


async def test_hints_of_devices_that_are_not_there(ready: Server) -> None:
    request = sync_service_pb2.GetHintRequest(user_id="alice", device_id="tablet")
    report = sync_service_pb2.ReportActivityRequest(
        user_id="alice", device_id="tablet", activity=sync_service_pb2.Activity()
    )
    for asked in (request, report):
        assert (await ready.backend.refusal(asked)).told == ("NOT_FOUND", "NOT_FOUND")
    request.device_id = "phone"
    assert (await ready.backend(request)).hint.heads


# ---------------------------------------------------------------------------------------------------------- publishing

# RFC 7396, appendix A: (original, patch, result).
MERGES = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"a": 1}),  # the first publish is a patch too, so a null of it is not kept
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


async def values(server: Server) -> dict[str, Any]:
    page = await feed(server.backend, page_size=1000)
    return {row.key: orjson.loads(row.value_json) if row.value_json else row.deleted for row in page.changes}


async def test_patches_merge_as_rfc_7396_says(ready: Server) -> None:
    originals, patches, results = zip(*MERGES, strict=True)
    # In two calls, and each key twice in one call.
    await ready.backend(publish(*(change(f"k{index}", value) for index, value in enumerate(originals))))
    await ready.backend(publish(*(change(f"k{index}", value) for index, value in enumerate(patches))))
    both = zip(originals, patches, strict=True)
    doubled = [change(f"d{index}", value) for index, pair in enumerate(both) for value in pair]
    await ready.backend(publish(*doubled))
    found = await values(ready)
    for index, result in enumerate(results):
        assert found[f"k{index}"] == found[f"d{index}"] == result, MERGES[index]


async def test_the_last_of_two_equal_names_counts(ready: Server) -> None:
    await ready.backend(publish(core_pb2.NewChange(scope=S, key="k", merge_patch_json='{"a": 1, "a": 2}')))
    assert await values(ready) == {"k": {"a": 2}}


ODD_BUT_GOOD = [
    *(
        ("[" * 32 + "]" * 32),
        '{"a":' * 32 + "1" + "}" * 32,
        '"' + "x" * 262_142 + '"',
        '"\\\\u0000"',
        '"\\ud83d\\ude00"',
    ),
    *(
        '{"a":1,"a":2}',
        "1e308",
        "1e-307",
        "-0",
        "9" * 34,
        '{"":null}',
        "null",
        '"\\u007f"',
        " 1 ",
        '{"é":"\U0010ffff"}',
    ),
]


async def test_odd_documents_that_are_good(ready: Server) -> None:
    for number, document in enumerate(ODD_BUT_GOOD):
        await ready.backend(publish(core_pb2.NewChange(scope=S, key=str(number), merge_patch_json=document)))
    assert len(await values(ready)) == len(ODD_BUT_GOOD)


async def test_concurrent_patches_all_count(ready: Server) -> None:
    names = [f"n{index}" for index in range(40)]
    callers = itertools.cycle([ready.backend, ready.user("alice"), ready.user("bob")])
    answers = await asyncio.gather(*(next(callers)(publish(change("k", {name: 1}))) for name in names))
    assert sorted(answer.results[0].sequence for answer in answers) == list(range(1, 41))
    assert await values(ready) == {"k": dict.fromkeys(names, 1)}


async def test_sequences_and_heads_of_a_publish(ready: Server) -> None:
    changes = [change("a"), change("b", scope="other"), change("a"), change("c"), change("a", deleted=True)]
    answer = await ready.backend(publish(*changes))
    assert [(r.scope, r.key, r.sequence) for r in answer.results] == [
        (S, "a", 1),
        ("other", "b", 1),
        (S, "a", 2),
        (S, "c", 3),
        (S, "a", 4),
    ]
    assert [(head.scope, head.sequence) for head in answer.heads] == [(S, 4), ("other", 1)]
    assert not answer.notification_id
    page = await feed(ready.user("alice"))
    assert [(row.key, row.sequence, row.deleted, row.value_json) for row in page.changes] == [
        ("c", 3, False, "1"),
        ("a", 4, True, ""),
    ]
    await ready.backend(publish(change("a", {"x": {"y": None}})))
    assert (await values(ready))["a"] == {"x": {}}, "a patch after a deletion starts from nothing"


async def test_an_expectation_that_is_not_met(ready: Server) -> None:
    await ready.publish(S, "k")
    await ready.publish(S, "k")
    before = await ready.rows()
    for expected, key, actual in ((0, "k", "2"), (1, "k", "2"), (3, "k", "2"), (1, "new", "0")):
        request = publish(change("innocent"), change(key, expected_sequence=expected))
        for caller in (ready.backend, ready.user("bob")):
            refusal = await caller.refusal(request)
            assert refusal.told == ("ABORTED", "SEQUENCE_MISMATCH")
            told = {name: refusal.metadata[name] for name in ("scope", "key", "sequence")}
            assert told == {"scope": S, "key": key, "sequence": actual}
    assert await ready.rows() == before
    met = publish(change("k", expected_sequence=2), change("new", expected_sequence=0))
    assert [result.sequence for result in (await ready.backend(met)).results] == [3, 4]


async def test_a_refused_publish_makes_no_scope(ready: Server) -> None:
    before = await ready.rows()
    refusal = await ready.backend.refusal(publish(change(scope="nobody's", expected_sequence=1)))
    assert refusal.told == ("ABORTED", "SEQUENCE_MISMATCH")
    assert await ready.rows() == before


async def test_a_merged_value_has_a_bound(ready: Server) -> None:
    # Random text: PostgreSQL would compress any other.
    part = {"x": "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) * 4}
    for index in range(4):
        await ready.backend(publish(change("k", {f"part {index}": part})))
    before = await ready.rows()
    refusal = await ready.backend.refusal(publish(change("k", {"part 4": part}), change("innocent")))
    assert (refusal.told, refusal.fields) == (("INVALID_ARGUMENT", "INVALID_FIELD"), ("changes[0].merge_patch_json",))
    assert await ready.rows() == before


# ------------------------------------------------------------------------------------------------------------ the feed


async def test_the_feed_pages(ready: Server) -> None:
    await ready.backend(publish(*(change(f"k{index}") for index in range(7))))
    alice, cursor, pages = ready.user("alice"), at(), []
    while True:
        page = await feed(alice, cursor, page_size=3)
        pages.append([row.sequence for row in page.changes])
        assert not page.reset
        cursor = page.next_cursor
        if not page.more:
            break
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]
    assert (cursor.scope, cursor.sequence) == (S, 7)
    assert not (await feed(alice, cursor)).changes
    began = int(time.time())
    await ready.publish(S, "k0")
    page = await feed(alice, cursor)
    assert [(row.key, row.sequence, row.epoch) for row in page.changes] == [("k0", 8, cursor.epoch)]
    assert began <= page.changes[0].change_time.seconds <= time.time()
    assert page.hint.HasField("poll_interval")


async def test_a_cursor_of_another_feed_is_reset(ready: Server) -> None:
    await ready.backend(publish(change("a"), change("b")))
    alice = ready.user("alice")
    for cursor in (at(sequence=1, epoch="another"), at(sequence=3), at(sequence=2**63 - 1)):
        page = await feed(alice, cursor)
        assert page.reset
        assert [row.key for row in page.changes] == ["a", "b"]
        assert page.next_cursor.sequence == 2
        reset = await alice.watch(cursors=[cursor]).next("reset")
        assert (reset.scope, reset.head.sequence, reset.head.epoch) == (S, 2, page.next_cursor.epoch)


async def test_a_scope_that_is_not_there(ready: Server) -> None:
    missing = sync_service_pb2.ListChangesRequest(cursor=at("nowhere"))
    refusal = await ready.backend.refusal(missing)
    assert refusal.told == ("NOT_FOUND", "NOT_FOUND")
    assert refusal.metadata["scope"] == "nowhere"
    assert (await ready.user("alice").refusal(missing)).told == ("PERMISSION_DENIED", "ACCESS_DENIED")


# ------------------------------------------------------------------------------------------------------------- streams


async def test_a_stream_opens_with_a_hint_and_a_checkpoint(ready: Server) -> None:
    stream = ready.user("alice").watch(device_id="phone")
    kind, hint = await stream.read()
    assert kind == "hint"
    assert 10 < hint.poll_interval.seconds <= 60
    kind, checkpoint = await stream.read()
    assert kind == "checkpoint"
    assert [(cursor.scope, cursor.sequence) for cursor in checkpoint.cursors] == [(S, 0)]
    assert 3500 < checkpoint.token_remaining.seconds <= 3630
    service = await ready.backend.watch(user_id="alice", device_id="phone").opened()
    assert not service.HasField("token_remaining")


@pytest.mark.usefixtures("unswept")
async def test_a_publish_reaches_the_stream(ready: Server) -> None:
    stream = ready.user("alice").watch(device_id="phone")
    await stream.opened()
    await ready.user("bob")(publish(change("a", {"x": 1}), change("b"), change("a", deleted=True)))
    events = await stream.until(lambda kind, _: kind == "checkpoint")
    changes = [event for kind, event in events if kind == "change"]
    assert [(c.scope, c.key, c.sequence, c.value_json, c.deleted) for c in changes] == [
        (S, "b", 2, "1", False),
        (S, "a", 3, "", True),
    ]
    kinds = [kind for kind, _ in events]
    assert kinds.count("hint") in (1, 2), "its interval more than halved: a writer came, and then wrote"
    assert [(cursor.scope, cursor.sequence) for cursor in events[-1][1].cursors] == [(S, 3)]


async def test_a_stream_resumes_at_its_cursor_and_misses_nothing(ready: Server) -> None:
    alice, seen = ready.user("alice"), list[int]()
    first = alice.watch(device_id="phone", cursors=[at(sequence=0)])
    await first.opened()
    for round_ in range(3):
        await ready.publish(S, f"while open {round_}")
        newest = await first.next("change")
        seen.append(newest.sequence)
        cursor = at(newest.scope, newest.sequence, newest.epoch)
        first.call.cancel()
        await ready.publish(S, f"while closed {round_}")
        first = alice.watch(device_id="phone", cursors=[cursor])
        events = await first.until(lambda kind, _: kind == "checkpoint")
        seen += [event.sequence for kind, event in events if kind == "change"]
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_many_changes_come_in_order_and_once(ready: Server) -> None:
    stream = ready.user("alice").watch(cursors=[at(sequence=0)])
    await ready.backend(publish(*(change(f"k{index}") for index in range(450))))
    events = await stream.until(lambda kind, event: kind == "change" and event.sequence == 450)
    assert [event.sequence for kind, event in events if kind == "change"] == list(range(1, 451))


async def test_a_stream_without_cursors_starts_now(ready: Server) -> None:
    await ready.publish(S, "before")
    stream = ready.user("alice").watch(cursors=[at()])
    await stream.opened()
    await ready.publish(S, "after")
    assert (await stream.next("change")).key == "after"


async def test_joining_and_leaving_a_scope(ready: Server) -> None:
    stream = ready.user("alice").watch(device_id="phone")
    await stream.opened()
    await ready.add("joined", "alice")
    # Once the stream follows it: a publish that came before would not be news to it.
    event = asyncio.ensure_future(stream.next("change"))
    async with asyncio.timeout(DEADLINE_S):
        while not event.done():
            await ready.publish("joined")
            await asyncio.wait([event], timeout=0.2)
    assert event.result().scope == "joined"
    leave = directory_service_pb2.RemoveScopeMembersRequest(scope="joined", user_ids=["alice"])
    assert (await ready.backend(leave)).removed_count == 1
    await ready.publish("joined", "secret")
    await ready.publish(S, "news")
    events = await stream.until(lambda kind, event: kind == "change" and event.scope == S)
    assert "secret" not in [event.key for kind, event in events if kind == "change"]
    checkpoint = await stream.next("checkpoint")
    assert [cursor.scope for cursor in checkpoint.cursors] == [S]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> HeldClock:
    """The clock of the server: it does not go on before the stream is open."""
    return HeldClock.of_servers(monkeypatch)


async def test_a_stream_ends_with_its_token(held: HeldClock, ready: Server) -> None:
    expires = held.now() + timedelta(seconds=1)
    stream = ready.bearer(mint(KEY, "alice", held.now(), timedelta(seconds=1))).watch(device_id="phone")
    checkpoint = await stream.opened()
    assert checkpoint.token_remaining.seconds == 1
    held.go_on()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.next("drain")
    assert refusal_of(caught.value).told == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
    assert expires <= held.now() < expires + MAX_LEEWAY, "a poll would be answered for 30 s more"


async def test_an_expired_token_opens_no_stream_for_long(ready: Server) -> None:
    """A poll still accepts it for the leeway of clocks; a stream ends at once."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ready.user("alice", life_s=-5).watch(device_id="phone").next("drain")
    assert refusal_of(caught.value).told == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


async def test_a_service_follows_all_scopes(ready: Server) -> None:
    stream = ready.backend.watch(all_scopes=True)
    await stream.opened()
    await ready.publish(S, "one")
    await ready.publish("made now", "two")
    changes = [await stream.next("change") for _ in range(2)]
    assert [(event.scope, event.key) for event in changes] == [(S, "one"), ("made now", "two")]
    checkpoint = await stream.next("checkpoint")
    assert {"made now", S} >= {cursor.scope for cursor in checkpoint.cursors} > set()


@pytest.mark.usefixtures("unswept")
async def test_a_publish_on_one_server_reaches_the_streams_of_another(ready: Server, redis_url: str) -> None:
    async with running_server(ready.urls, redis_url) as second:
        streams = [
            second.user("alice").watch(device_id="phone"),
            second.backend.watch(all_scopes=True),
            ready.user("bob").watch(),
        ]
        for stream in streams:
            await stream.opened()
        await ready.publish(S, "one")
        await second.publish(S, "two")
        for stream in streams:
            keys = [(await stream.next("change")).key for _ in range(2)]
            assert keys == ["one", "two"]


async def test_what_a_stream_has_brought_counts_as_seen(ready: Server) -> None:
    await ready.publish(S, "one")
    stream = ready.user("alice").watch(device_id="phone", cursors=[at(sequence=0)])
    await stream.opened()

    async def recorded() -> bool:
        return any("phone" in row for row in (await ready.rows())["device_cursors"])

    await wait_until(recorded)


@pytest.mark.parametrize("redis", [True, False], ids=["with Redis", "without Redis"])
async def test_what_is_published_right_after_a_join_is_streamed(ready: Server, redis_url: str, redis: bool) -> None:
    """Also by a process whose wake-ups come late, or never."""
    url = redis_url if redis else "unix:///nonexistent/redis.sock"
    async with running_server(ready.urls, url) as streaming:
        stream = streaming.user("alice").watch(device_id="phone")
        await stream.opened()
        joined = [f"joined {index}" for index in range(15)]
        for scope in joined:
            await ready.add(scope, "alice")
            await ready.publish(scope, "first")
        missing = set(joined)
        while missing:
            missing.discard((await stream.next("change")).scope)


async def test_a_stream_that_starts_now_has_not_seen_what_was_before(ready: Server) -> None:
    await ready.add("quiet", "bob")
    await ready.register("bob", "tablet")
    await ready.publish("quiet", "before")
    quiet = ready.user("bob").watch(device_id="tablet")
    await quiet.opened()
    stream = ready.user("alice").watch(device_id="phone")
    await stream.opened()
    await ready.publish(S, "after")

    async def scopes_seen() -> set[str]:
        return {scope for row in (await ready.rows())["device_cursors"] for scope in (S, "quiet") if scope in row}

    assert await wait_until(scopes_seen) == {S}
