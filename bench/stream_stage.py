"""The environment of the stream figures: many users in one scope, and servers with their streams."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import asyncpg

from bench import slot_server as slots
from bench.processes import RunningProcess, running_process
from bench.stage import user_token
from bench.stream_client import Streams
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.embedded import EmbeddedStores

SCOPE = "room"
WATCH = "/syncbeat.v1.SyncService/WatchHints"
STREAMS_PER_CONNECTION = 100  # as many as a server allows


def watcher(number: int) -> str:
    """Return the user of a stream."""
    return f"watcher-{number:05}"


def watcher_tokens(count: int) -> list[str]:
    """Return an access token for the user of each stream."""
    return [user_token(watcher(number)) for number in range(count)]


def add_watchers(stores: EmbeddedStores, count: int) -> None:
    """Insert so many users, each with a device, who are all members of one scope."""
    asyncio.run(_add_watchers(stores.admin_url, [watcher(number) for number in range(count)]))


async def _add_watchers(url: str, users: Sequence[str]) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("INSERT INTO scopes (app_id, scope, created_at) VALUES ('default', $1, now())", SCOPE)
        await connection.execute(
            """INSERT INTO devices (app_id, user_id, device_id, platform, token_state, registered_at, updated_at)
               SELECT 'default', user_id, 'phone', 'ANDROID', 'NONE', now(), now() FROM unnest($1::text[]) user_id""",
            users,
        )
        await connection.execute(
            """INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
               SELECT 'default', user_id, $2, 'READER', now() FROM unnest($1::text[]) user_id""",
            users,
            SCOPE,
        )
        await connection.execute("ANALYZE devices, scopes, scope_members")
    finally:
        await connection.close()


@contextmanager
def slot_server(first_bytes: int = 100) -> Iterator[RunningProcess]:
    """Run the bare slot server."""
    with running_process([sys.executable, "-m", "bench.slot_server", str(first_bytes)], slots.READY) as server:
        yield server


def streams_to(server: RunningProcess, tokens: Sequence[str]) -> Streams:
    """Return the streams of these users to a server, not opened yet."""
    request = pb.WatchHintsRequest(device_id="phone").SerializeToString()
    connections = ceil(len(tokens) / STREAMS_PER_CONNECTION)
    return Streams(server.address, WATCH, tokens, request, connections)
