"""Tests `syncbeat-server smoke` on real processes: each step passes, and none leaves anything behind when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_devtools.smoke.journey import METHODS, METHODS_WITHOUT_SESSIONS
from syncbeat_server.ops.settings.types import token_digest
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

STEPS = ["user", "device", "scope", "publish", "hint", "stream", "push", "clean-up"]
LEFT = (
    "SELECT (SELECT count(*) FROM devices) + (SELECT count(*) FROM scope_members) + (SELECT count(*) FROM deliveries)"
    " + (SELECT count(*) FROM changes WHERE NOT deleted) + (SELECT count(*) FROM sessions)"
)
TOKEN = "token-of-the-smoke-test"


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        yield staging


def allow(stage: Stage, *methods: str) -> None:
    """Give the token these methods alone."""
    entry = f"smoke:{token_digest(TOKEN)}:{'|'.join(methods)}:*"
    stage.settings["SYNCBEAT_SERVICE_TOKENS"] += f",{entry}"


async def start_smoke(stage: Stage, *arguments: str, token: str = TOKEN) -> asyncio.subprocess.Process:
    file = stage.folder / "token"
    file.write_text(f"{token}\n")
    target = ("--target", stage.servers[0].address, "--token-file", str(file))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "syncbeat_server.cli", "smoke", *target, *arguments),
        env={name: text for name, text in os.environ.items() if not name.startswith("SYNCBEAT_")},
        cwd=stage.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def smoke(stage: Stage, *arguments: str, token: str = TOKEN) -> tuple[int, Any]:
    """Run the command to its end: its exit code and what it told."""
    child = await start_smoke(stage, "--json", *arguments, token=token)
    out, err = await child.communicate()
    assert TOKEN not in out.decode() + err.decode()
    assert err == b""
    return child.returncode or 0, json.loads(out)


async def rows_left(urls: DatabaseUrls) -> int:
    """Count the rows that a run would have left."""
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return int(await conn.fetchval(LEFT))
    finally:
        await conn.close()


async def test_smoke_passes_with_its_allow_list_and_leaves_nothing(stage: Stage, database_urls: DatabaseUrls) -> None:
    allow(stage, *METHODS)
    await asyncio.gather(stage.start_server(), stage.start_worker())
    code, told = await smoke(stage)
    assert (code, told["ok"]) == (0, True), told
    assert [step["name"] for step in told["steps"]] == STEPS
    assert await rows_left(database_urls) == 0
    child = await start_smoke(stage)
    out, _ = await child.communicate()
    assert child.returncode == 0
    assert [line.split()[:2] for line in out.decode().splitlines()] == [
        *(["ok", name] for name in STEPS),
        ["OK", "in"],
    ]


async def test_smoke_passes_with_log_provider_and_without_session_keys(
    stage: Stage, database_urls: DatabaseUrls
) -> None:
    allow(stage, *METHODS, *METHODS_WITHOUT_SESSIONS)
    for name in ("FCM_CREDENTIALS", "FCM_BASE_URL", "SESSION_KEYS", "SESSION_SECRETS"):
        del stage.settings[f"SYNCBEAT_{name}"]
    await asyncio.gather(stage.start_server(), stage.start_worker())
    code, told = await smoke(stage)
    assert code == 0, told
    assert told["steps"][0]["detail"] == "no keys for sessions: the service acts for the user"
    assert told["steps"][6]["detail"].startswith("SENT")
    assert await rows_left(database_urls) == 0


async def test_smoke_without_a_worker_fails_at_the_push_in_time_and_cleans_up(
    stage: Stage, database_urls: DatabaseUrls
) -> None:
    allow(stage, *METHODS)
    await stage.start_server()
    code, told = await smoke(stage, "--timeout", "5")
    assert (code, told["ok"], told["left_behind"]) == (1, False, [])
    assert [step["name"] for step in told["steps"] if not step["ok"]] == ["push"]
    assert told["seconds"] < 25.0
    assert await rows_left(database_urls) == 0


async def test_smoke_names_what_it_may_not_take_back(stage: Stage) -> None:
    allow(stage, *(name for name in METHODS if name not in ("DeleteUser", "SendNotification")))
    await stage.start_server()
    code, told = await smoke(stage)
    assert code == 1
    assert told["left_behind"] == [f"user {told['user_id']}"]
    assert [step["name"] for step in told["steps"] if not step["ok"]] == ["push", "clean-up"]
    assert "PERMISSION_DENIED" in told["steps"][-1]["detail"]


async def test_smoke_that_is_stopped_cleans_up(stage: Stage, database_urls: DatabaseUrls) -> None:
    allow(stage, *METHODS)
    await stage.start_server()  # and no worker: the push waits
    child = await start_smoke(stage)

    async def pushed() -> bool:
        return await rows_left(database_urls) >= 5

    await wait_until(pushed)
    child.send_signal(signal.SIGTERM)
    out, err = await child.communicate()
    assert (child.returncode, err) == (1, b"")
    assert "clean-up" in out.decode()
    assert await rows_left(database_urls) == 0
