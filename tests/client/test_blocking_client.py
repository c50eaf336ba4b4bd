"""The client for threads: what it adds to calls, what it repeats, and that many threads share it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import grpc
import pytest

from syncbeat import ClientRule, SessionTokens, explain
from syncbeat.blocking import SyncbeatClient
from syncbeat.v1 import auth_service_pb2, core_pb2, directory_service_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.v1.error_reason_pb2 import ErrorReason
from syncbeat_server.auth.tokens.keys import new_signing_key
from tests.support.client_servers import BACKEND, Hold, Refusal, Scripted, real_server, scripted_server, user_token
from tests.support.databases import DatabaseUrls

pytestmark = pytest.mark.rpc

T = TypeVar("T")
DOWN = Refusal(grpc.StatusCode.UNAVAILABLE)
CHANGE = core_pb2.NewChange(scope="chat:7", key="topic", merge_patch_json='{"text": "hi"}')


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    async with scripted_server() as served:
        yield served


async def calling(address: str, calls: Callable[[SyncbeatClient], T], **options: Any) -> T:
    """Return what calls of a client give that are made in a thread."""

    def made() -> T:
        with SyncbeatClient(address, **{"token": BACKEND, "tls": False, **options}) as client:
            return calls(client)

    return await asyncio.to_thread(made)


async def test_blocking_call_is_retried_with_the_same_request_id(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    answer = pb.PublishChangesResponse(replayed=True)
    script.prepare("PublishChanges", DOWN, Refusal(grpc.StatusCode.CANCELLED), answer)
    assert await calling(address, lambda client: client.publish(CHANGE)) == answer
    attempts = script.attempts["PublishChanges"]
    assert len({attempt.request.request_id for attempt in attempts}) == 1
    assert attempts[0].request.request_id
    assert [attempt.authorization for attempt in attempts] == [f"Bearer {BACKEND}"] * 3


async def test_blocking_call_gives_up_after_four_attempts_and_waits_for_pushback(
    scripted: tuple[Scripted, str],
) -> None:
    script, address = scripted
    shed = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after_s=0.7)
    script.prepare("SendNotification", shed, DOWN, DOWN, DOWN)
    with pytest.raises(grpc.RpcError) as caught:
        await calling(address, lambda client: client.send(core_pb2.Notification(title="Hi"), user_ids=["ann"]))
    assert explain(caught.value).code is grpc.StatusCode.UNAVAILABLE
    first, second, *others = script.attempts["SendNotification"]
    assert (len(others), second.at - first.at >= 0.65) == (2, True)


async def test_blocking_call_never_repeats_refresh_session_and_sends_no_token(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("RefreshSession", DOWN)
    request = auth_service_pb2.RefreshSessionRequest(refresh_token="r")
    with pytest.raises(grpc.RpcError):
        await calling(address, lambda client: client.auth.RefreshSession(request))
    assert [attempt.authorization for attempt in script.attempts["RefreshSession"]] == [None]


async def test_blocking_call_has_the_default_deadline_or_its_own(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("PublishChanges", pb.PublishChangesResponse(), pb.PublishChangesResponse())

    def calls(client: SyncbeatClient) -> None:
        client.publish(CHANGE)
        client.publish(CHANGE, timeout=3)

    await calling(address, calls, timeout_s=7)
    assert [round(attempt.deadline_s or 0) for attempt in script.attempts["PublishChanges"]] == [7, 3]


async def test_blocking_call_takes_its_token_from_a_function_and_names_the_app(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("PublishChanges", pb.PublishChangesResponse(), pb.PublishChangesResponse())
    tokens, threads = iter(["one", "two"]), []

    def token() -> str:
        threads.append(threading.get_ident())
        return next(tokens)

    def calls(client: SyncbeatClient) -> int:
        client.publish(CHANGE)
        client.publish(CHANGE, request_id="order-5")
        return threading.get_ident()

    caller = await calling(address, calls, token=token, app_id="shop")
    first, second = script.attempts["PublishChanges"]
    assert (first.authorization, second.authorization) == ("Bearer one", "Bearer two")
    assert (first.request.app_id, second.request.request_id) == ("shop", "order-5")
    assert threads == [caller, caller], "the function runs in the caller's thread"


async def test_blocking_send_fills_the_request(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("SendNotification", push_service_pb2.SendNotificationResponse(delivery_count=2))

    def calls(client: SyncbeatClient) -> None:
        hello = core_pb2.Notification(title="Hello")
        for wrong in ({}, {"user_ids": ["ann"], "scope": "s"}):
            with pytest.raises(ValueError, match="user_ids or a scope"):
                client.send(hello, **wrong)  # type: ignore[arg-type]  # arguments that types refuse are refused at run time too
        sent = client.send(hello, scope="s", dedupe_key="k", ttl=timedelta(minutes=5), critical=True)
        assert sent.delivery_count == 2

    await calling(address, calls)
    (attempt,) = script.attempts["SendNotification"]
    assert (attempt.request.scope, attempt.request.dedupe_key, attempt.request.ttl.seconds) == ("s", "k", 300)
    assert attempt.request.critical


async def test_blocking_channel_that_is_silent_is_replaced(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("PublishChanges", Hold(), Hold(), pb.PublishChangesResponse())
    opened = []

    def calls(client: SyncbeatClient) -> None:
        open_channel = client._channel._open_channel

        def counted() -> grpc.Channel:
            opened.append(1)
            return open_channel()

        client._channel._open_channel = counted
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                client.publish(CHANGE, timeout=0.3)
        client.publish(CHANGE)

    await calling(address, calls, rule=ClientRule(connection_spacing_s=0.0))
    assert len(opened) == 2, "one that two calls in a row heard nothing from is replaced"


async def test_blocking_client_closed_makes_no_calls(scripted: tuple[Scripted, str]) -> None:
    client = SyncbeatClient(scripted[1], token=BACKEND, tls=False)
    client.close()
    with pytest.raises(ValueError, match="closed"):
        await asyncio.to_thread(client.publish, CHANGE)


async def test_blocking_publish_takes_a_source_time(database_urls: DatabaseUrls, redis_url: str) -> None:
    made_at = datetime.now(UTC) - timedelta(seconds=60)
    own = core_pb2.NewChange(scope="chat:7", key="own", merge_patch_json="2")
    own.source_time.FromDatetime(made_at - timedelta(seconds=1))
    async with real_server(database_urls, redis_url) as address:

        def story(client: SyncbeatClient) -> list[list[int]]:
            with pytest.raises(ValueError, match="zone"):
                client.publish(CHANGE, source_time=made_at.replace(tzinfo=None))
            answers = [client.publish(CHANGE, own, source_time=made_at - timedelta(seconds=back)) for back in (0, 2, 0)]
            return [[one.outcome for one in answer.results] for answer in answers]

        outcomes = await calling(address, story)
    written, older, same = pb.PUBLISH_OUTCOME_WRITTEN, pb.PUBLISH_OUTCOME_SUPERSEDED, pb.PUBLISH_OUTCOME_UNCHANGED
    assert outcomes == [[written, written], [older, same], [same, same]]


THREADS, CALLS = 16, 20


async def test_blocking_client_is_shared_by_threads(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with real_server(database_urls, redis_url) as address:

        def story(client: SyncbeatClient) -> list[int]:
            start = threading.Barrier(THREADS)

            def publish(number: int) -> list[int]:
                start.wait()
                change = core_pb2.NewChange(scope="chat:7", key=f"k{number}", merge_patch_json="1")
                return [client.publish(change).heads[0].sequence for _ in range(CALLS)]

            with ThreadPoolExecutor(THREADS) as pool:
                return [sequence for found in pool.map(publish, range(THREADS)) for sequence in found]

        sequences = await calling(address, story)
    assert sorted(sequences) == list(range(1, THREADS * CALLS + 1)), "each publish is answered with its own"


async def test_blocking_client_explains_errors_and_streams(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with real_server(database_urls, redis_url) as address:

        def story(client: SyncbeatClient) -> None:
            with pytest.raises(grpc.RpcError) as caught:
                client.publish()
            told = explain(caught.value)
            assert told.reason == ErrorReason.ERROR_REASON_INVALID_FIELD
            assert [violation.path for violation in told.violations] == ["changes"]
            client.directory.AddScopeMembers(
                directory_service_pb2.AddScopeMembersRequest(
                    scope="chat:7",
                    members=[directory_service_pb2.ScopeMember(user_id="ann", role=directory_service_pb2.ROLE_READER)],
                )
            )
            client.publish(CHANGE)
            watch = client.sync.WatchHints(
                pb.WatchHintsRequest(user_id="ann", cursors=[core_pb2.ScopeCursor(scope="chat:7", sequence=0)])
            )
            change = next(event.change for event in watch if event.HasField("change"))
            assert (change.key, change.value_json) == ("topic", '{"text": "hi"}')
            watch.cancel()

        await calling(address, story)
        with pytest.raises(grpc.RpcError):
            await calling(address, lambda client: client.publish(CHANGE), token=user_token("eve"))


async def test_blocking_client_keeps_sessions(database_urls: DatabaseUrls, redis_url: str) -> None:
    keys, secrets = new_signing_key("k").decode(), "k=0123456789abcdef0123456789abcdef"
    async with real_server(database_urls, redis_url, SESSION_KEYS=keys, SESSION_SECRETS=secrets) as address:

        def story(client: SyncbeatClient) -> SessionTokens:
            tokens = client.create_session("ann", device_id="phone", claims={"plan": "pro"})
            client.revoke_session("ann", client.create_session("ann").session_id)
            return tokens

        tokens = await calling(address, story)
        request = directory_service_pb2.ListDevicesRequest()
        await calling(address, lambda client: client.directory.ListDevices(request), token=tokens.access_token)
        await calling(address, lambda client: client.revoke_user("ann", reason="lost phone"))
        with pytest.raises(grpc.RpcError) as caught:
            await calling(address, lambda client: client.directory.ListDevices(request), token=tokens.access_token)
        assert explain(caught.value).reason == ErrorReason.ERROR_REASON_TOKEN_REVOKED


# As servers do that load the app first (gunicorn --preload, uWSGI): a client of the parent in its child.
FORK = """
import os, sys
from syncbeat.blocking import SyncbeatClient
from syncbeat.v1 import core_pb2

client = SyncbeatClient(sys.argv[1], token="t", tls=False)
change = core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")

def in_child():
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        client.publish(change)
        os._exit(3)
    except RuntimeError as error:
        os._exit(4 if "before the process forked" in str(error) else 5)

before_any_call = in_child()
client.publish(change)
print(before_any_call, in_child())
"""


async def test_blocking_client_made_before_a_fork_works_until_it_is_used(scripted: tuple[Scripted, str]) -> None:
    script, address = scripted
    script.prepare("PublishChanges", pb.PublishChangesResponse(), pb.PublishChangesResponse())
    command = [sys.executable, "-c", FORK, address]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["3", "4"], done.stderr
