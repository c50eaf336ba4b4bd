"""Exports of any size with what they are stored as, put into the database at once, and commands run on them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from tests.support.databases import DatabaseUrls
from tests.support.operator_commands import PROGRAM, command_environment

MAP = """
version = 1
[[value]]
path = "chats/{chat}/{message}"
scope = "chat:{chat}"
key = "{message}"
"""
EXPORTED = "2026-11-01T00:00:00Z"
PER_CHAT = 100
_STEP = 7_919  # a prime: chats are in the file in another order than in the database
# Of the number n: the value, as the file and as the database has it.
# Arrays are stored as the objects that they are to the Realtime Database.
_VALUE = (
    "jsonb_build_object('n', n, 'text', 'message ' || n || ' ☃', 'x', n + 0.5, "
    "'tags', jsonb_build_object('0', 'a', '1', n))"
)


def write_export(path: Path, values: int) -> None:
    """Write an export of so many values, a multiple of `PER_CHAT`."""
    chats = values // PER_CHAT
    with path.open("w", encoding="utf-8") as file:
        file.write('{"chats":{')
        for place in range(chats):
            chat = place * _STEP % chats
            numbers = reversed(range(chat * PER_CHAT, (chat + 1) * PER_CHAT))
            messages = ",".join(
                f'"m{n}":{{"n":{n},"text":"message {n} \\u2603","x":{n}.50,"tags":["a",{n}]}}' for n in numbers
            )
            file.write(f'{"," if place else ""}"c{chat}":{{{messages}}}')
        file.write("}}")


async def plant(urls: DatabaseUrls, values: int) -> None:
    """Store the same values, as of the time of the export."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute(
            f"""INSERT INTO scopes (app_id, scope, head, created_at, changed_at)
                SELECT 'default', 'chat:c' || chat, {PER_CHAT}, '{EXPORTED}', '{EXPORTED}'
                FROM generate_series(0, {values // PER_CHAT - 1}) AS chat"""
        )
        await conn.execute(
            f"""INSERT INTO changes (app_id, scope, key, value, sequence, changed_at, source_time)
                SELECT 'default', 'chat:c' || n / {PER_CHAT}, 'm' || n, {_VALUE}, n % {PER_CHAT} + 1,
                       '{EXPORTED}', '{EXPORTED}'
                FROM generate_series(0, {values - 1}) AS n""",
            timeout=1_800,
        )
        await conn.execute("ANALYZE scopes, changes")
    finally:
        await conn.close()


async def plant_large(urls: DatabaseUrls, values: int, octets: int) -> None:
    """Store values that are texts of so many octets, after some small ones."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        await conn.execute("SET session_replication_role = replica")
        await conn.execute(
            "INSERT INTO scopes (app_id, scope, head, created_at) VALUES ('default', 'chat:large', 1, now())"
        )
        await conn.execute(
            """INSERT INTO changes (app_id, scope, key, value, sequence, changed_at)
               SELECT 'default', 'chat:large', 'm' || lpad(n::text, 5, '0'),
                      to_jsonb(repeat('x', CASE WHEN n > 100 THEN $2::int ELSE 1 END)), n, now()
               FROM generate_series(1, $1::int + 100) AS n""",
            values,
            octets,
        )
    finally:
        await conn.close()


async def damage(urls: DatabaseUrls, number: int) -> None:
    """Change one value by a thousandth, as nothing of the service does."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        done = await conn.execute(
            "UPDATE changes SET value = jsonb_set(value, '{x}', to_jsonb((value ->> 'x')::numeric + 0.001)) "
            "WHERE app_id = 'default' AND scope = 'chat:c' || $1::int / 100 AND key = 'm' || $1::int",
            number,
        )
        assert done == "UPDATE 1"
    finally:
        await conn.close()


async def untrue(urls: DatabaseUrls) -> tuple[list[str], list[str]]:
    """Return the keys whose value is not that of the export, and those that were written since."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        rows = await conn.fetch(
            f"""SELECT key, value IS DISTINCT FROM {_VALUE} AS differs, sequence <> n % {PER_CHAT} + 1 AS written
                FROM (SELECT key, value, sequence, substr(key, 2)::int AS n FROM changes) AS found
                WHERE value IS DISTINCT FROM {_VALUE} OR sequence <> n % {PER_CHAT} + 1"""
        )
    finally:
        await conn.close()
    return [row["key"] for row in rows if row["differs"]], [row["key"] for row in rows if row["written"]]


@dataclass(frozen=True)
class Ran:
    """Result of a command, with its time and its largest resident memory."""

    status: int
    output: str
    errors: str
    seconds: float
    rss_mib: float


async def run(urls: DatabaseUrls, redis_url: str, folder: Path, *arguments: str) -> Ran:
    """Run `syncbeat-server` in a folder, and measure it."""
    stores = {"SYNCBEAT_DATABASE_URL": urls.app_url, "SYNCBEAT_REDIS_URL": redis_url}

    def finish() -> Ran:
        began, rss_mib = time.monotonic(), 0.0
        with (folder / "out").open("w+") as out, (folder / "err").open("w+") as errors:
            process = subprocess.Popen(
                [*PROGRAM, *arguments],
                env=command_environment(stores),
                stdout=out,
                stderr=errors,
                cwd=folder,
            )
            while process.returncode is None:
                # What the system says of a child that has ended includes what its parent had when it was forked.
                rss_mib = max(rss_mib, _peak_mib(process.pid))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            seconds = time.monotonic() - began
            out.seek(0)
            errors.seek(0)
            return Ran(process.returncode, out.read(), errors.read(), seconds, rss_mib)

    return await asyncio.to_thread(finish)


def _peak_mib(pid: int) -> float:
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1_024
    return 0.0
