"""A database that is dropped, made anew and restored under a running server: calls may come again, streams live on."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from syncbeat.v1 import core_pb2, directory_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls, create_database, drop_database
from tests.support.fake_clock import wait_until
from tests.support.restores import postgres_tool
from tests.support.rpc_server import METHODS, Caller, Server, running_server

pytestmark = pytest.mark.rpc

DOWN = ("UNAVAILABLE", "DEPENDENCY_DOWN")
CHANGE = core_pb2.NewChange(scope="s", key="k", merge_patch_json="1")
OF_USERS: list[Message] = [
    pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope="s")),
    pb.PublishChangesRequest(changes=[CHANGE]),
    pb.GetHintRequest(device_id="phone", cursors=[core_pb2.ScopeCursor(scope="s", epoch="other", sequence=9)]),
    directory_service_pb2.ListScopesRequest(),
    directory_service_pb2.ListDevicesRequest(),
]
OF_SERVICES: list[Message] = [
    pb.PublishChangesRequest(changes=[CHANGE]),
    pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope="s")),
    directory_service_pb2.AddScopeMembersRequest(
        scope="s", members=[directory_service_pb2.ScopeMember(user_id="x", role=directory_service_pb2.ROLE_READER)]
    ),
]


class Followed:
    """A stream that is read in the background; how it ended, if it did."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.changes: list[str] = []
        self.end: object = None
        self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        try:
            while (event := await self._call.read()) is not grpc.aio.EOF:
                assert isinstance(event, pb.WatchHintsResponse)
                if event.HasField("change"):
                    self.changes.append(event.change.key)
            self.end = "ended"
        except grpc.aio.AioRpcError as error:
            self.end = error

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._call.cancel()


async def told(server: Server) -> dict[tuple[str, bool], object]:
    """Return what each call is refused with."""
    found: dict[tuple[str, bool], object] = {}
    for by_user, requests in ((True, OF_USERS), (False, OF_SERVICES)):
        caller: Caller = server.user("ann") if by_user else server.backend
        for request in requests:
            refusal = await caller.outcome(METHODS[request.DESCRIPTOR.name], request.SerializeToString())
            found[request.DESCRIPTOR.name, by_user] = refusal and refusal.told
    return found


@pytest.mark.timeout(180)
async def test_database_dropped_and_restored_is_an_outage(
    stores: EmbeddedStores,
    database_urls: DatabaseUrls,
    redis_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file, admin = tmp_path / "dump", database_urls.admin_url
    async with running_server(database_urls, redis_url) as server:
        await server.add("s", "ann")
        await server.register("ann", "phone")
        await server.publish("s")
        await asyncio.to_thread(postgres_tool, "pg_dump", "--format=custom", f"--file={file}", admin)
        streams = []
        for watch in (
            server.user("ann").watch(device_id="phone"),
            server.backend.watch(all_scopes=True, token=""),
            server.backend.watch(all_scopes=True),
        ):
            await watch.opened()
            streams.append(Followed(watch.call))

        async def restored(*options: str) -> None:
            await asyncio.to_thread(
                postgres_tool, "pg_restore", "--exit-on-error", *options, f"--dbname={admin}", str(file)
            )

        await drop_database(stores, database_urls.name)
        assert {*(await told(server)).values()} == {DOWN}, "there is none"
        await create_database(stores, database_urls.name)
        assert {*(await told(server)).values()} == {DOWN}, "it is empty"
        caplog.clear()
        assert {*(await told(server)).values()} == {DOWN}
        logged = [(record.levelno, record.getMessage()) for record in caplog.records]
        assert (logging.ERROR, "dependency unfit (SQLSTATE 42P01)") in logged
        await restored("--no-privileges")  # pg_restore gives these last
        assert {*(await told(server)).values()} == {DOWN}, "nobody may use it yet"
        await asyncio.to_thread(postgres_tool, "pg_restore", "--list", f"--file={tmp_path / 'all'}", str(file))
        grants = [line for line in (tmp_path / "all").read_text().splitlines() if " ACL " in line]
        (tmp_path / "grants").write_text("\n".join(grants))
        await restored(f"--use-list={tmp_path / 'grants'}")
        await server.publish("s", "after")
        await wait_until(lambda: all(stream.end or "after" in stream.changes for stream in streams[:2]), 30.0)
        assert [stream.end for stream in streams[:2]] == [None, None]
        assert streams[2].end in (None, "ended"), "by cursors it is sent away in peace"
        for stream in streams:
            await stream.stop()
