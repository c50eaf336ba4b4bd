"""The apps file of a server that runs: apps come, change their keys and go, and nobody else is refused meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc
import pytest

from syncbeat.v1 import auth_service_pb2, core_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.storage.postgres.database import Database
from tests.support.app_rows import plant_app
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.file_damage import put
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import Caller, Server, refusal_of, running_server
from tests.support.seed import rows_of

pytestmark = pytest.mark.rpc

OLD, NEW = "an-old-secret-of-32-bytes-or-more", "the-new-secret-of-32-bytes-or-more"
SHOP = Issuer("shop", "https://shop.example", uuid_subjects=False)
OLD_KEY, NEW_KEY = KeyRow(SHOP, "old", "HS256", OLD), KeyRow(SHOP, "new", "HS256", NEW)
ENDS_S = 5.0
"""From the removal of an app to the end of its streams."""


def shop(*secrets: str, more: str = "") -> str:
    keys = {"old": OLD, "new": NEW}
    listed = ", ".join(f'{kid} = "{keys[kid]}"' for kid in secrets)
    return f'[apps.shop]\njwt_issuer = "{SHOP.name}"\njwt_subjects = "any"\njwt_secrets = {{ {listed} }}\n{more}'


EMPTY = "[apps.default]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "apps.toml"
    path.write_text(EMPTY)
    return path


@pytest.fixture
async def running(database_urls: DatabaseUrls, redis_url: str, file: Path) -> AsyncIterator[Server]:
    often = replace(PATIENT, files_every_s=0.05)
    async with running_server(database_urls, redis_url, Role.ALL, often, APPS_FILE=str(file)) as server:
        yield server


def ann(server: Server, key: KeyRow = OLD_KEY) -> Caller:
    return server.user("ann", key=key)


HINT = pb.GetHintRequest(device_id="phone")
SEEN = auth_service_pb2.ListSessionsRequest()


async def accepts(caller: Caller) -> bool:
    """Tell if a caller is let in."""
    try:
        await caller(SEEN)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise
        return False
    return True


async def until_accepted(caller: Caller, *, accepted: bool = True) -> None:
    async def as_wanted() -> bool:
        return await accepts(caller) is accepted

    await wait_until(as_wanted)


async def test_app_that_is_added_is_served_in_full_without_restart(
    running: Server, file: Path, database: Database
) -> None:
    assert not await accepts(ann(running))
    put(file, EMPTY + shop("old"))
    await until_accepted(ann(running))
    await running.register("ann", "phone", "anns-token", app_id="shop")
    await running.add("cart", "ann", app_id="shop")
    assert await running.publish("cart", app_id="shop") == 1
    assert (await ann(running)(HINT)).hint.heads
    session = await running.backend(auth_service_pb2.CreateSessionRequest(app_id="shop", user_id="ann"))
    assert await accepts(running.bearer(session.access_token))
    sent = push_service_pb2.SendNotificationRequest(
        app_id="shop",
        user_ids=core_pb2.UserIds(ids=["ann"]),
        notification=core_pb2.Notification(title="t"),
        request_id="once",
    )
    await running.backend(sent)
    assert (await running.backend(sent)).replayed

    async def is_sent() -> bool:
        return await rows_of(database, "SELECT app_id, state FROM deliveries") == [("shop", "SENT")]

    await wait_until(is_sent)


async def test_app_that_is_removed_is_refused_and_its_streams_end(running: Server, file: Path) -> None:
    put(file, EMPTY + shop("old"))
    await until_accepted(ann(running))
    await running.register("ann", "phone", app_id="shop")
    session = await running.backend(auth_service_pb2.CreateSessionRequest(app_id="shop", user_id="ann"))
    own = running.bearer(session.access_token)
    assert await accepts(own)
    streams = [
        ann(running).watch(device_id="phone"),
        own.watch(device_id="phone"),
        running.backend.watch(all_scopes=True, app_id="shop"),
    ]
    await running.register("bob", "tablet")
    other = running.user("bob").watch(device_id="tablet")
    for stream in (*streams, other):
        await stream.opened()
    put(file, EMPTY)
    began = time.monotonic()
    for stream in streams:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.until(lambda *_: False)
        assert refusal_of(ended.value).told == ("UNAUTHENTICATED", "TOKEN_REVOKED")
    assert time.monotonic() - began < ENDS_S
    assert not await accepts(ann(running))
    assert not await accepts(own)
    refresh = auth_service_pb2.RefreshSessionRequest(refresh_token=session.refresh_token)
    assert (await running.user("bob").refusal(refresh)).told == ("UNAUTHENTICATED", "TOKEN_INVALID")
    create = auth_service_pb2.CreateSessionRequest(app_id="shop", user_id="ann")
    assert (await running.backend.refusal(create)).told == ("PERMISSION_DENIED", "ACCESS_DENIED")
    assert not other.call.done()
    put(file, EMPTY + shop("old"))
    await until_accepted(ann(running))
    assert await accepts(own)


async def test_app_secrets_rotate_under_load_without_a_refusal(running: Server, file: Path) -> None:
    put(file, EMPTY + shop("old"))
    await until_accepted(ann(running))
    await running.register("ann", "phone", app_id="shop")
    rotated, calls, refused = asyncio.Event(), 0, []

    async def poll(caller: Caller) -> None:
        nonlocal calls
        while not rotated.is_set():
            try:
                await caller(HINT)
            except grpc.aio.AioRpcError as error:
                refused.append(refusal_of(error))
            calls += 1

    async def poll_anew() -> None:
        """As a device whose token nobody has checked yet."""
        nonlocal calls
        life_s = 600
        while not rotated.is_set():
            life_s += 1
            try:
                await running.user("ann", life_s, current)(HINT)
            except grpc.aio.AioRpcError as error:
                refused.append(refusal_of(error))
            calls += 1

    current = OLD_KEY
    await running.register("bob", "phone")
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(poll(running.user("bob")))
            group.create_task(poll_anew())
        holders = group.create_task(poll(ann(running, OLD_KEY)))
        put(file, EMPTY + shop("old", "new"))
        await until_accepted(ann(running, NEW_KEY))
        current = NEW_KEY
        group.create_task(poll(ann(running, NEW_KEY)))
        put(file, EMPTY + shop("new", "old"))
        seen = calls
        await wait_until(lambda: calls > seen + 50)
        holders.cancel()  # its token is over
        put(file, EMPTY + shop("new"))
        await until_accepted(ann(running, OLD_KEY), accepted=False)
        seen = calls
        await wait_until(lambda: calls > seen + 50)
        rotated.set()
    assert calls > 100
    assert refused == []


async def test_apps_file_with_a_key_that_cannot_be_used_changes_nothing_and_is_told_once(
    running: Server, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(file, EMPTY + shop("old"))
    await until_accepted(ann(running))
    caplog.clear()
    # Only the process that serves finds out: an audience is wanted of this kind of issuer.
    put(file, EMPTY + '[apps.other]\njwt_profile = "auth0"\njwt_issuer = "https://x.auth0.com/"\n')
    await wait_until(lambda: [one for one in caplog.records if one.levelno >= logging.ERROR])
    for _ in range(20):
        assert await accepts(ann(running))
    faults = [str(one.__dict__.get("fault")) for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(faults) == 1, faults
    assert "SYNCBEAT_JWT_AUDIENCE" in faults[0]
    put(file, EMPTY)
    await until_accepted(ann(running), accepted=False)


async def test_deliveries_of_a_removed_app_wait_until_it_is_back(
    running: Server, file: Path, database: Database, database_urls: DatabaseUrls
) -> None:
    put(file, EMPTY + shop("old"))
    await until_accepted(ann(running))
    put(file, EMPTY)
    await until_accepted(ann(running), accepted=False)
    await plant_app(database_urls, "shop", 1, "notifications", "deliveries")
    await running.register("bob", "tablet", "bobs-token")

    async def states(app_id: str) -> list[str]:
        wanted = "SELECT state FROM deliveries WHERE app_id = $1"
        return [state for (state,) in await rows_of(database, wanted, app_id)]

    async def sent(number: int) -> bool:
        return await states("default") == ["SENT"] * number

    for number in range(1, 4):  # of another app, each sent by a claim that came after
        content = core_pb2.Notification(title="t")
        to_bob = push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["bob"]), notification=content, request_id=f"r{number}"
        )
        await running.backend(to_bob)
        await wait_until(partial(sent, number))
    assert await states("shop") == ["PENDING"]
    put(file, EMPTY + shop("old"))

    async def claimed() -> bool:
        return await states("shop") != ["PENDING"]

    await wait_until(claimed)
