"""An export of a hundred thousand users is imported within bounded memory, through kills, and once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.firebase_users import firebase_user
from tests.support.operator_commands import command_environment

pytestmark = pytest.mark.prove

USERS = int(os.environ.get("IMPORT_USERS", "100000"))
KILLS = 3
MOST_RSS_MIB = 200
ISSUER = "https://securetoken.google.com/our-shop"
ARGUMENTS = [sys.executable, "-m", "syncbeat_server.cli", "import-users"]


def write_export(path: Path) -> None:
    """Write users of whom each second has a verified address, and each thousandth is disabled."""
    with path.open("w") as file:
        file.write('{"users": [\n')
        for number in range(USERS):
            user = firebase_user(f"uid{number:024}", emailVerified=number % 2 == 0, disabled=number % 1_000 == 0)
            file.write(f"{',' if number else ''}{json.dumps(user)}\n")
        file.write("]}\n")


def run(arguments: list[str], environment: dict[str, str]) -> tuple[int, str, float, float]:
    """Run the command; return its status, output, seconds and the most MiB it had in memory."""
    began = time.monotonic()
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, output, time.monotonic() - began, usage.ru_maxrss / 1_024


async def kill_at(arguments: list[str], environment: dict[str, str], urls: DatabaseUrls, most: int) -> int:
    """Run the command, kill it once it has written so many identities, and return how many there are then."""
    process = await asyncio.create_subprocess_exec(*arguments, env=environment, stdout=subprocess.DEVNULL)

    async def has_come_so_far() -> bool:
        return process.returncode is not None or await identities(urls) >= most

    await wait_until(has_come_so_far, timeout_s=300.0)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    return await identities(urls)


async def identities(urls: DatabaseUrls) -> int:
    """Return the number of identities."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return int(await conn.fetchval("SELECT count(*) FROM user_identities"))
    finally:
        await conn.close()


async def rows(urls: DatabaseUrls) -> list[tuple[int, int, str]]:
    """Return the number of rows and a digest of what an import writes but for its times."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        texts = (
            "SELECT user_id, disabled_at IS NULL FROM users",
            "SELECT subject, user_id, email_digest FROM user_identities",
            "SELECT action, details FROM audit_entries",
        )
        digest = "SELECT count(*), count(DISTINCT r), md5(string_agg(r::text, ',' ORDER BY r)) FROM ({}) r"
        found = [row for text in texts for row in await conn.fetch(digest.format(text))]
        return [tuple(row.values()) for row in found]
    finally:
        await conn.close()


@pytest.mark.timeout(3_600)
async def test_user_import_of_a_large_export(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, record: Callable[[str, dict[str, object]], None]
) -> None:
    export, apps = tmp_path / "users.json", tmp_path / "apps.toml"
    write_export(export)
    apps.write_text(f'[[apps.default.issuers]]\njwt_issuer = "https://new.example"\nemail_joins = "{ISSUER}"\n')
    stores = {"SYNCBEAT_DATABASE_URL": database_urls.app_url, "SYNCBEAT_REDIS_URL": redis_url}
    environment = command_environment({**stores, "SYNCBEAT_APPS_FILE": str(apps)})
    arguments = [*ARGUMENTS, str(export), "--project", "our-shop"]
    killed_at = []
    for share in range(1, KILLS + 1):  # in each quarter but the last
        most = int(USERS * (share - random.random()) / (KILLS + 1)) + 1
        killed_at.append(await kill_at(arguments, environment, database_urls, most))
    status, output, took_s, rss = run(arguments, environment)
    assert status == 0, output
    first = await rows(database_urls)
    assert [count for count, *_ in first[:2]] == [USERS, USERS]
    again, output, again_s, again_rss = run(arguments, environment)
    assert again == 0
    assert await rows(database_urls) == first
    assert f"of {USERS} users 0 new ones, 0 identities, 0 disabled" in output
    assert max(rss, again_rss) < MOST_RSS_MIB
    record(
        "user-import",
        {
            "users": USERS,
            "export_mib": round(export.stat().st_size / 2**20, 1),
            "identities_at_kills": killed_at,
            "last_run_s": round(took_s, 1),
            "second_import_s": round(again_s, 1),
            "second_import_users_per_s": round(USERS / again_s),
            "most_rss_mib": round(max(rss, again_rss), 1),
        },
    )
