"""WatchHints over the wire: what a stream opens with, brings and ends by."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc
import pytest

from syncbeat.v1 import directory_service_pb2
from syncbeat_server.auth.model import MAX_LEEWAY
from syncbeat_server.auth.tokens.verify import mint
from tests.support.fake_clock import wait_until
from tests.support.held_clock import HeldClock
from tests.support.process_rules import DEADLINE_S, UNSWEPT
from tests.support.rpc_server import KEY, Server, refusal_of, running_server
from tests.support.sync_requests import S, at, change, publish, with_a_couple

pytestmark = pytest.mark.rpc


@pytest.fixture
async def ready(server: Server) -> Server:
    return await with_a_couple(server)


async def test_stream_opens_with_a_hint_and_a_checkpoint(ready: Server) -> None:
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


@pytest.mark.parametrize("rules", [UNSWEPT], ids=["unswept"])
async def test_stream_brings_a_publish(ready: Server) -> None:
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


async def test_stream_resumes_at_its_cursor(ready: Server) -> None:
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


async def test_stream_brings_many_changes_in_order_and_once(ready: Server) -> None:
    stream = ready.user("alice").watch(cursors=[at(sequence=0)])
    await ready.backend(publish(*(change(f"k{index}") for index in range(450))))
    events = await stream.until(lambda kind, event: kind == "change" and event.sequence == 450)
    assert [event.sequence for kind, event in events if kind == "change"] == list(range(1, 451))


async def test_stream_without_cursors_starts_now(ready: Server) -> None:
    await ready.publish(S, "before")
    stream = ready.user("alice").watch(cursors=[at()])
    await stream.opened()
    await ready.publish(S, "after")
    assert (await stream.next("change")).key == "after"


async def test_stream_follows_joined_and_left_scopes(ready: Server) -> None:
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


async def test_stream_ends_with_its_token(held: HeldClock, ready: Server) -> None:
    expires = held.now() + timedelta(seconds=1)
    stream = ready.bearer(mint(KEY, "alice", held.now(), timedelta(seconds=1))).watch(device_id="phone")
    checkpoint = await stream.opened()
    assert checkpoint.token_remaining.seconds == 1
    held.go_on()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.next("drain")
    assert refusal_of(caught.value).told == ("UNAUTHENTICATED", "TOKEN_EXPIRED")
    assert expires <= held.now() < expires + MAX_LEEWAY, "a poll would be answered for 30 s more"


async def test_stream_with_an_expired_token_ends(ready: Server) -> None:
    """A poll still accepts it for the leeway of clocks; a stream ends at once."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ready.user("alice", life_s=-5).watch(device_id="phone").next("drain")
    assert refusal_of(caught.value).told == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


async def test_stream_of_a_service_follows_all_scopes(ready: Server) -> None:
    stream = ready.backend.watch(all_scopes=True)
    await stream.opened()
    await ready.publish(S, "one")
    await ready.publish("made now", "two")
    changes = [await stream.next("change") for _ in range(2)]
    assert [(event.scope, event.key) for event in changes] == [(S, "one"), ("made now", "two")]
    checkpoint = await stream.next("checkpoint")
    assert {"made now", S} >= {cursor.scope for cursor in checkpoint.cursors} > set()


@pytest.mark.parametrize("rules", [UNSWEPT], ids=["unswept"])
async def test_stream_brings_a_publish_of_another_server(ready: Server, redis_url: str) -> None:
    async with running_server(ready.urls, redis_url, rules=UNSWEPT) as second:
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


async def test_stream_records_sent_changes_as_seen(ready: Server) -> None:
    await ready.publish(S, "one")
    stream = ready.user("alice").watch(device_id="phone", cursors=[at(sequence=0)])
    await stream.opened()

    async def recorded() -> bool:
        return any("phone" in row for row in (await ready.rows())["device_cursors"])

    await wait_until(recorded)


@pytest.mark.parametrize("redis", [True, False], ids=["with Redis", "without Redis"])
async def test_stream_brings_a_publish_right_after_a_join(ready: Server, redis_url: str, redis: bool) -> None:
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


async def test_stream_from_now_does_not_mark_the_past_as_seen(ready: Server) -> None:
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
