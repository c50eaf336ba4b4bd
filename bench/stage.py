"""The environment of a figure: embedded stores, our server, the bare echo, and rows and tokens for calls."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc

from bench import echo_server as echo
from bench.figure import Round
from bench.h2load import Load
from bench.processes import COMMAND, RunningProcess, cpu_between, cpu_s, running_process
from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.storage.migrate import migrate

SERVICE_TOKEN = "bench-service-token"
SCOPES_EACH = 3
GET_HINT = "/syncbeat.v1.SyncService/GetHint"
PUBLISH = "/syncbeat.v1.SyncService/PublishChanges"
SEND = "/syncbeat.v1.PushService/SendNotification"
INGEST = "/syncbeat.v1.EventService/IngestEvent"

_KEY = KeyRow(Issuer("default", "syncbeat", uuid_subjects=False), "k1", "HS256", "0123456789abcdef0123456789abcdef")


@contextmanager
def migrated_stores(directory: Path | None = None) -> Iterator[EmbeddedStores]:
    """Start new embedded stores with the service's tables; in a directory PostgreSQL syncs its commits to disk."""
    with running_stores(directory) as stores:
        asyncio.run(migrate(stores.owner_url, app_login="syncbeat_app"))
        yield stores


@contextmanager
def our_server(stores: EmbeddedStores, role: str = "all", **settings: str) -> Iterator[RunningProcess]:
    """Run `syncbeat-server serve` as one process on these stores."""
    environment = {
        "SYNCBEAT_ROLE": role,
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_DATABASE_URL": stores.app_url,
        "SYNCBEAT_REDIS_URL": stores.redis_url,
        "SYNCBEAT_JWT_SECRETS": f"{_KEY.kid}={_KEY.key}",
        "SYNCBEAT_JWT_SUBJECTS": "any",
        "SYNCBEAT_SERVICE_TOKENS": f"bench:{hashlib.sha256(SERVICE_TOKEN.encode()).hexdigest()}:*:*",
        **settings,
    }
    with running_process([*COMMAND, "serve"], "syncbeat-server: serving", environment) as server:
        yield server


@contextmanager
def echo_server(answer_bytes: int) -> Iterator[RunningProcess]:
    """Run the bare echo, which returns this many bytes."""
    with running_process([sys.executable, "-m", "bench.echo_server", str(answer_bytes)], echo.READY) as server:
        yield server


def user_token(user_id: str, seconds: int = 3600) -> str:
    """Return an access token of a user, valid for so many seconds."""
    return mint(_KEY, user_id, datetime.now(UTC), timedelta(seconds=seconds))


def add_users(stores: EmbeddedStores, user_ids: Sequence[str], *, pushable: bool = False) -> None:
    """Insert users with one device `phone` each, and `SCOPES_EACH` scopes of their own, each with a head.

    `pushable` devices have a registration token.
    """
    asyncio.run(_add_users(stores.owner_url, stores.app_url, user_ids, pushable=pushable))


async def _add_users(owner_url: str, app_url: str, user_ids: Sequence[str], *, pushable: bool) -> None:
    now = datetime.now(UTC)
    scopes = [(user_id, f"scope-{user_id}-{number}") for user_id in user_ids for number in range(SCOPES_EACH)]
    state = "ACTIVE" if pushable else "NONE"
    devices = [
        ("default", user_id, "phone", "ANDROID", state, *_registration(user_id, pushable=pushable), now, now)
        for user_id in user_ids
    ]
    tables: dict[str, tuple[str, Sequence[Sequence[object]]]] = {
        "devices": (
            "app_id user_id device_id platform token_state registration_token token_digest registered_at updated_at",
            devices,
        ),
        "scopes": (
            "app_id scope head p_hot cold_count cold_s changed_at created_at",
            [("default", scope, 7, 0.1, 7.0, 3600.0, now, now) for _, scope in scopes],
        ),
        "scope_members": (
            "app_id user_id scope role added_at",
            [("default", user_id, scope, "WRITER", now) for user_id, scope in scopes],
        ),
    }
    connection = await asyncpg.connect(app_url, statement_cache_size=0)
    try:
        for table, (columns, rows) in tables.items():
            # COPY is refused under row-level security, hence INSERT.
            names = columns.split()
            values = ", ".join(f"${number}" for number in range(1, len(names) + 1))
            insert = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"  # noqa: S608  # our own names
            await connection.executemany(insert, rows)
    finally:
        await connection.close()
    owner = await asyncpg.connect(owner_url)
    try:
        await owner.execute("ANALYZE devices, scopes, scope_members")
    finally:
        await owner.close()


def _registration(user_id: str, *, pushable: bool) -> tuple[str | None, bytes | None]:
    token = f"token-of-{user_id}"
    return (token, hashlib.sha256(token.encode()).digest()) if pushable else (None, None)


def measure_load(server: RunningProcess, database_pid: int | None, load: Callable[[], Load]) -> Round:
    """Put a load on a server. Returns requests per second, and the CPU of it and of the database behind it, if any."""
    before = Cpu.now(server.pid, database_pid)
    done = load()
    used, used_by_database = Cpu.now(server.pid, database_pid).since(before)
    return Round(
        done.per_second,
        used / done.requests * 1e6,
        used_by_database / done.requests * 1e6 if database_pid else None,
    )


@dataclass(frozen=True)
class Cpu:
    """The CPU that a server and its database have used up to now."""

    server: dict[int, float]
    database: dict[int, float]

    @staticmethod
    def now(server_pid: int, database_pid: int | None = None) -> Cpu:
        """Read the current values."""
        return Cpu(cpu_s(server_pid), cpu_s(database_pid) if database_pid else {})

    def since(self, before: Cpu) -> tuple[float, float]:
        """Return the seconds used by the server and by the database since `before`."""
        return cpu_between(before.server, self.server), cpu_between(before.database, self.database)


def call(address: str, path: str, request: bytes, token: str) -> bytes:
    """Make one call with a real gRPC client. Returns the response.

    Raises:
        grpc.RpcError: it did not end OK.
    """
    with grpc.insecure_channel(address) as channel:
        made: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        answer: bytes = made(request, metadata=(("authorization", f"Bearer {token}"),), timeout=10)
        return answer
