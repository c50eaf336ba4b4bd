"""SyncService: hints, publishing, the feed."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import orjson
import pytest

from syncbeat.v1 import core_pb2, sync_service_pb2
from tests.support.rpc_server import Server
from tests.support.sync_requests import PACED, S, at, change, feed, hint_request, publish, with_a_couple

pytestmark = pytest.mark.rpc


@pytest.fixture
async def ready(server: Server) -> Server:
    return await with_a_couple(server)


# --------------------------------------------------------------------------------------------------------------- hints


async def test_hint_says_whether_there_is_news(ready: Server) -> None:
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


async def test_hint_is_complete(ready: Server) -> None:
    began = int(time.time())
    hint = (await ready.user("alice")(hint_request())).hint
    assert 10 < hint.poll_interval.seconds <= 60
    assert hint.priority == sync_service_pb2.PRIORITY_NORMAL
    assert hint.valid_duration.seconds >= 300
    assert began <= hint.next_poll_time.seconds - hint.poll_interval.seconds <= time.time() + 1
    assert not hint.explanation
    assert "expected to change" in (await ready.user("alice")(hint_request(explain=True))).hint.explanation


async def test_interval_is_shortened_by_changes_and_attention(ready: Server) -> None:
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


async def test_hint_of_a_missing_device(ready: Server) -> None:
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


async def test_merge_patch_follows_rfc_7396(ready: Server) -> None:
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


async def test_duplicate_json_names_keep_the_last(ready: Server) -> None:
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


async def test_json_documents_odd_but_valid_are_accepted(ready: Server) -> None:
    for number, document in enumerate(ODD_BUT_GOOD):
        await ready.backend(publish(core_pb2.NewChange(scope=S, key=str(number), merge_patch_json=document)))
    assert len(await values(ready)) == len(ODD_BUT_GOOD)


async def test_merge_of_concurrent_patches_counts_all(ready: Server) -> None:
    names = [f"n{index}" for index in range(40)]
    callers = itertools.cycle([ready.backend, ready.user("alice"), ready.user("bob")])
    answers = await asyncio.gather(*(next(callers)(publish(change("k", {name: 1}))) for name in names))
    assert sorted(answer.results[0].sequence for answer in answers) == list(range(1, 41))
    assert await values(ready) == {"k": dict.fromkeys(names, 1)}


async def test_publish_returns_sequences_and_heads(ready: Server) -> None:
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


async def test_expected_sequence_mismatch_is_refused(ready: Server) -> None:
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


async def test_publish_refused_creates_no_scope(ready: Server) -> None:
    before = await ready.rows()
    refusal = await ready.backend.refusal(publish(change(scope="nobody's", expected_sequence=1)))
    assert refusal.told == ("ABORTED", "SEQUENCE_MISMATCH")
    assert await ready.rows() == before


async def test_value_size_limit_applies_after_merging(ready: Server) -> None:
    # Random text: PostgreSQL would compress any other.
    part = {"x": "".join(map(chr, range(0x4E00, 0x4E00 + 20_000))) * 4}
    for index in range(4):
        await ready.backend(publish(change("k", {f"part {index}": part})))
    before = await ready.rows()
    refusal = await ready.backend.refusal(publish(change("k", {"part 4": part}), change("innocent")))
    assert (refusal.told, refusal.fields) == (("INVALID_ARGUMENT", "INVALID_FIELD"), ("changes[0].merge_patch_json",))
    assert await ready.rows() == before


# ------------------------------------------------------------------------------------------------------------ the feed


async def test_pagination_of_the_feed(ready: Server) -> None:
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


async def test_cursor_of_another_feed_is_reset(ready: Server) -> None:
    await ready.backend(publish(change("a"), change("b")))
    alice = ready.user("alice")
    for cursor in (at(sequence=1, epoch="another"), at(sequence=3), at(sequence=2**63 - 1)):
        page = await feed(alice, cursor)
        assert page.reset
        assert [row.key for row in page.changes] == ["a", "b"]
        assert page.next_cursor.sequence == 2
        reset = await alice.watch(cursors=[cursor]).next("reset")
        assert (reset.scope, reset.head.sequence, reset.head.epoch) == (S, 2, page.next_cursor.epoch)


async def test_scope_missing_is_refused(ready: Server) -> None:
    missing = sync_service_pb2.ListChangesRequest(cursor=at("nowhere"))
    refusal = await ready.backend.refusal(missing)
    assert refusal.told == ("NOT_FOUND", "NOT_FOUND")
    assert refusal.metadata["scope"] == "nowhere"
    assert (await ready.user("alice").refusal(missing)).told == ("PERMISSION_DENIED", "ACCESS_DENIED")
