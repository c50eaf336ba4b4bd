"""`watch` of the Python client: nothing is missed and nothing comes twice, whatever becomes of the streams."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from syncbeat import ClientRule, Watch, explain
from syncbeat.v1 import core_pb2, directory_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.v1.error_reason_pb2 import ErrorReason
from syncbeat_devtools.demo.processes import start_process
from tests.support.client_servers import (
    WAIT_S,
    Hold,
    Refusal,
    Scripted,
    client_of,
    environment,
    publish,
    real_server,
    scripted_server,
    user_token,
)
from tests.support.databases import DatabaseUrls
from tests.support.ports import free_port

pytestmark = pytest.mark.rpc

DOWN = Refusal(grpc.StatusCode.UNAVAILABLE)
EXPIRED = Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED")


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    async with scripted_server() as served:
        yield served


def at(sequence: int, scope: str = "s", epoch: str = "e") -> core_pb2.ScopeCursor:
    return core_pb2.ScopeCursor(scope=scope, epoch=epoch, sequence=sequence)


def change(sequence: int, scope: str = "s", epoch: str = "e") -> pb.WatchHintsResponse:
    row = pb.Change(scope=scope, epoch=epoch, key=f"k{sequence}", value_json="1", sequence=sequence)
    return pb.WatchHintsResponse(change=row)


def checkpoint(*cursors: core_pb2.ScopeCursor) -> pb.WatchHintsResponse:
    return pb.WatchHintsResponse(checkpoint=pb.Checkpoint(cursors=cursors))


def reset(head: core_pb2.ScopeCursor) -> pb.WatchHintsResponse:
    return pb.WatchHintsResponse(reset=pb.Reset(scope=head.scope, head=head))


def drain(delay_ms: int) -> pb.WatchHintsResponse:
    answer = pb.WatchHintsResponse(drain=pb.Drain())
    answer.drain.reconnect_delay.FromMilliseconds(delay_ms)
    return answer


async def sequences(watch: Watch, last: int) -> list[int]:
    """The sequences of the changes that come, up to `last`."""
    found = []
    async with asyncio.timeout(WAIT_S):
        async for event in watch:
            if isinstance(event, pb.Change):
                found.append(event.sequence)
                if event.sequence == last:
                    break
    return found


async def keys(watch: Watch, last: str, on: Callable[[str], None] = lambda key: None) -> list[str]:
    """The keys of the changes that come, up to `last`, however long that takes; each is told to `on`."""
    found = []
    async for event in watch:
        if isinstance(event, pb.Change):
            found.append(event.key)
            on(event.key)
            if event.key == last:
                break
    return found


async def soon(reading: Awaitable[list[str]]) -> list[str]:
    """Return what is read, when all that it waits for has been done: what servers take to start is not counted."""
    return await asyncio.wait_for(reading, WAIT_S)


async def opened(watch: Watch) -> None:
    """Return when the stream hears of every change."""
    async with asyncio.timeout(WAIT_S):
        async for event in watch:
            if isinstance(event, pb.Checkpoint):
                return


async def join(address: str, scope: str, user_id: str) -> None:
    async with client_of(address) as client:
        members = [directory_service_pb2.ScopeMember(user_id=user_id, role=directory_service_pb2.ROLE_READER)]
        await client.directory.AddScopeMembers(
            directory_service_pb2.AddScopeMembersRequest(scope=scope, members=members)
        )


@pytest.mark.slow
async def test_watch_reconnects_after_a_killed_server(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    rule = ClientRule(max_delay_s=1.0)  # else it grows with what the servers take to start
    settings = environment(database_urls, redis_url, free_port())
    first = await start_process(["serve"], settings, tmp_path / "log")
    names = [f"k{number}" for number in range(200)]
    halfway = asyncio.Event()

    def note(key: str) -> None:
        if key == "k50":
            halfway.set()

    async with real_server(database_urls, redis_url) as other, client_of(other) as backend:
        await join(other, "room", "alice")
        async with client_of(first.address, token=user_token("alice"), rule=rule) as client:
            watch = client.watch("phone")
            await opened(watch)
            reading = asyncio.create_task(keys(watch, "k199", note))
            publishing = asyncio.create_task(publish(backend, "room", *names[:180]))
            await asyncio.wait_for(halfway.wait(), WAIT_S)
            await first.kill()
            await publishing
            second = await start_process(["serve"], settings, tmp_path / "log")
            try:
                await publish(backend, "room", *names[180:])
                assert await soon(reading) == names
                kept = watch.cursors
                await publish(backend, "room", "later")
                async with client.watch("phone", cursors=kept) as resumed:
                    assert await soon(keys(resumed, "later")) == ["later"]
            finally:
                await watch.close()
                await second.stop()


async def test_watch_reconnects_after_a_drain(
    database_urls: DatabaseUrls, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    rule = ClientRule(max_delay_s=1.0)
    caplog.set_level(logging.INFO, "syncbeat.watch")
    port = free_port()
    async with (
        real_server(database_urls, redis_url) as other,
        client_of(other) as backend,
        client_of(f"127.0.0.1:{port}", token=user_token("alice"), rule=rule) as client,
        client.watch() as watch,
    ):
        await join(other, "room", "alice")
        async with real_server(database_urls, redis_url, port):
            await opened(watch)
            await publish(backend, "room", "before")
            assert await soon(keys(watch, "before")) == ["before"]
            reading = asyncio.create_task(keys(watch, "after"))
        await publish(backend, "room", "between")
        async with real_server(database_urls, redis_url, port):
            await publish(backend, "room", "after")
            assert await soon(reading) == ["between", "after"]
            await watch.close()
    assert "the stream ended (drained)" in caplog.text


async def test_watch_renews_the_token(database_urls: DatabaseUrls, redis_url: str) -> None:
    lives = iter([2.0, 3600.0])
    renewed = asyncio.Event()

    async def token() -> str:
        life_s = next(lives)
        if life_s > 2.0:
            renewed.set()
        return user_token("alice", life_s)

    async with real_server(database_urls, redis_url) as address, client_of(address) as backend:
        await join(address, "room", "alice")
        async with client_of(address, token=token) as client, client.watch() as watch:
            await opened(watch)
            reading = asyncio.create_task(keys(watch, "after"))
            await publish(backend, "room", "before")
            async with asyncio.timeout(WAIT_S):
                await renewed.wait()
            await publish(backend, "room", "after")
            assert await soon(reading) == ["before", "after"]


async def test_watch_never_repeats_a_change(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change(1), checkpoint(at(1)), change(2), DOWN], [change(2), change(3), Hold()])
    async with client_of(address) as client, client.watch("phone", user_id="alice") as watch:
        assert await sequences(watch, 3) == [1, 2, 3]
        assert watch.cursors == [at(3)]
    first, second = [attempt.request for attempt in script.attempts["WatchHints"]]
    assert list(first.cursors) == []
    assert list(second.cursors) == [at(2)]
    assert (second.device_id, second.user_id) == ("phone", "alice")
    assert second.heartbeat_interval == first.heartbeat_interval
    assert script.attempts["WatchHints"][0].deadline_s is None


async def test_watch_reset_moves_back_and_other_epochs_count(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare(
        "WatchHints", [reset(at(4)), change(4), change(5), change(1, epoch="f"), change(2, epoch="f"), Hold()]
    )
    async with client_of(address) as client, client.watch(cursors=[at(9)]) as watch:
        event = await anext(watch)
        assert isinstance(event, pb.Reset)
        assert watch.cursors == [at(4)]
        assert await sequences(watch, 2) == [5, 1, 2]
        assert watch.cursors == [at(2, epoch="f")]


async def test_watch_accepts_cursors_without_place_and_unknown_events(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [pb.WatchHintsResponse(), change(7), checkpoint(at(8)), Hold()])
    from_now = core_pb2.ScopeCursor(scope="s")
    async with client_of(address) as client, client.watch(cursors=[from_now]) as watch:
        assert await sequences(watch, 7) == [7]
        assert isinstance(await anext(watch), pb.Checkpoint)
        assert watch.cursors == [at(8)]
    assert list(script.attempts["WatchHints"][0].request.cursors) == [from_now]


@pytest.mark.parametrize(("everything", "kept"), [(False, ["new"]), (True, ["s", "new"])])
async def test_watch_forgets_a_left_scope(scripted: tuple[Scripted, str], everything: bool, kept: list[str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [checkpoint(at(1, "new")), Hold()])
    async with client_of(address) as client, client.watch(cursors=[at(3)], all_scopes=everything) as watch:
        await opened(watch)
        assert [cursor.scope for cursor in watch.cursors] == kept


async def test_watch_forgets_a_scope_left_while_disconnected(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    denied = Refusal(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED", {"scope": "gone"})
    script.prepare("WatchHints", [denied], [change(4), Hold()], [denied])
    async with client_of(address) as client:
        async with client.watch(cursors=[at(2, "gone"), at(3)]) as watch:
            assert await sequences(watch, 4) == [4]
        with pytest.raises(grpc.aio.AioRpcError):
            await opened(client.watch(cursors=[at(3)]))
    assert [len(attempt.request.cursors) for attempt in script.attempts["WatchHints"]] == [2, 1, 1]


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.PERMISSION_DENIED, "ACCESS_DENIED"),
        Refusal(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"),
        Refusal(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED"),
        Refusal(grpc.StatusCode.UNIMPLEMENTED),
    ],
    ids=lambda refusal: refusal.reason or refusal.code.name,
)
async def test_watch_raises_permanent_errors(scripted: tuple[Scripted, str], refusal: Refusal) -> None:
    script, address = scripted
    script.prepare("WatchHints", [checkpoint(), refusal])
    async with client_of(address, token=lambda: "new") as client:
        watch = client.watch()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sequences(watch, 1)
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
    assert caught.value.code() is refusal.code
    assert len(script.attempts["WatchHints"]) == 1


@pytest.mark.parametrize(
    "ending",
    [
        [Refusal(grpc.StatusCode.INTERNAL, "INTERNAL")],
        [Refusal(grpc.StatusCode.DEADLINE_EXCEEDED)],
        [Refusal(grpc.StatusCode.CANCELLED)],
        [],
    ],
    ids=["internal", "deadline", "cancelled", "end"],
)
async def test_watch_backoff_waits_out_transient_errors(scripted: tuple[Scripted, str], ending: list[Refusal]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change(1), *ending], [*ending], [change(2), Hold()])
    async with client_of(address) as client, client.watch() as watch:
        assert await sequences(watch, 2) == [1, 2]


@pytest.mark.parametrize(
    "ending", [Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.4), drain(400)]
)
async def test_watch_honours_retry_after(
    scripted: tuple[Scripted, str], ending: Refusal | pb.WatchHintsResponse
) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change(1), ending], [change(2), Hold()])
    async with client_of(address) as client, client.watch() as watch:
        assert await sequences(watch, 2) == [1, 2]
    first, second = script.attempts["WatchHints"]
    assert second.at - first.at >= 0.4


async def test_watch_raises_an_expired_fixed_token(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change(1), EXPIRED])
    async with client_of(address, token="fixed") as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sequences(client.watch(), 2)
    assert explain(caught.value).reason == ErrorReason.ERROR_REASON_TOKEN_EXPIRED


async def test_watch_raises_when_all_tokens_are_expired(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    for number in range(1, 20):
        script.prepare("WatchHints", [change(number), EXPIRED])
    numbers = itertools.count()
    async with client_of(address, rule=ClientRule(first_delay_s=0.0), token=lambda: f"t{next(numbers)}") as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sequences(client.watch(), 20)
    assert explain(caught.value).reason == ErrorReason.ERROR_REASON_TOKEN_EXPIRED
    sent = [attempt.authorization for attempt in script.attempts["WatchHints"]]
    assert sent == [f"Bearer t{number}" for number in range(9)]


async def test_watch_lists_cursors_beyond_the_stream_limit(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change(9, "c2001"), change(8, "c0"), Hold()])
    script.prepare(
        "ListChanges",
        pb.ListChangesResponse(changes=[change(7, "c2001").change], next_cursor=at(7, "c2001"), more=True),
        pb.ListChangesResponse(changes=[change(9, "c2001").change], next_cursor=at(9, "c2001")),
        pb.ListChangesResponse(changes=[change(1, "c2000").change], next_cursor=at(3, "c2000", "new"), reset=True),
    )
    given = [at(5, f"c{number}") for number in range(2_002)]
    async with client_of(address) as client, client.watch(cursors=given, all_scopes=True) as watch:
        assert await sequences(watch, 9) == [7, 9]
        event = await anext(watch)
        assert isinstance(event, pb.Reset)
        assert event.head == at(3, "c2000", "new")
        assert await sequences(watch, 8) == [8]
        cursors = {cursor.scope: cursor for cursor in watch.cursors}
    assert list(script.attempts["WatchHints"][0].request.cursors) == given[:2_000]
    asked = [attempt.request.cursor for attempt in script.attempts["ListChanges"]]
    assert asked == [at(5, "c2001"), at(7, "c2001"), at(5, "c2000")]
    assert len(cursors) == 2_002
    assert (cursors["c2000"], cursors["c2001"]) == (at(3, "c2000", "new"), at(9, "c2001"))


async def test_watch_reconnects_a_silent_stream(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    # On a slow machine streams are given up before their first event too: each brings what the test has come to.
    script.answers["WatchHints"] = [[change(1), Hold()] for _ in range(100)]
    rule = ClientRule(first_delay_s=0.0, least_heartbeat_s=0.1)
    async with client_of(address, rule=rule) as client, client.watch(heartbeat_s=0.1) as watch:
        assert await sequences(watch, 1) == [1]
        script.answers["WatchHints"] = [[change(2), Hold()] for _ in range(100)]
        assert await sequences(watch, 2) == [2]
        await asyncio.wait_for(script.left.wait(), WAIT_S)


@pytest.mark.parametrize("way", ["close", "cancel", "forget"])
async def test_watch_end_closes_the_stream(scripted: tuple[Scripted, str], way: str) -> None:
    script, address = scripted
    script.prepare("WatchHints", [change(1), Hold()])
    async with client_of(address) as client:
        watch = client.watch()
        assert await sequences(watch, 1) == [1]
        match way:
            case "close":
                await watch.close()
            case "cancel":
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), 0.05)
            case _:
                del watch
        await asyncio.wait_for(script.left.wait(), WAIT_S)
