"""Tests `syncbeat-server status` on real processes: both are listed by either, and one that is killed goes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from syncbeat_devtools.demo.processes import Process
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow]

# Tests that run in the background of a shell have SIGINT ignored, and what they start inherits that.
INTERRUPTIBLE = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('syncbeat_server.cli', run_name='__main__', alter_sys=True)"
)


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        staging.settings["SYNCBEAT_REVISION"] = "rev-1"
        yield staging


async def status(stage: Stage, *arguments: str, token: str = "") -> tuple[int, str, str]:
    """Run the command to its end: its exit code and what it wrote."""
    file = stage.folder / "token"
    file.write_text(f"{token or stage.identity.service_token}\n")
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "syncbeat_server.cli", "status", "--token-file", str(file), *arguments),
        env={name: text for name, text in os.environ.items() if not name.startswith("SYNCBEAT_")},
        cwd=stage.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


async def listed(stage: Stage, server: Process) -> dict[int, Any]:
    """The processes that a server lists, by their pid."""
    code, out, err = await status(stage, "--target", server.address, "--json")
    assert code == 0, err
    return {int(one["process"].rpartition(":")[2]): one for one in json.loads(out)["processes"]}


async def test_status_command_lists_both_processes_and_drops_a_killed_one(stage: Stage) -> None:
    one, two = await asyncio.gather(stage.start_server(), stage.start_server())
    for server in (one, two):

        async def both(server: Process = server) -> bool:
            return (await listed(stage, server)).keys() == {one.pid, two.pid}

        await wait_until(both)
    code, out, err = await status(stage, "--target", one.address)
    assert (code, err) == (0, "")
    assert "processes (2)" in out
    assert f":{one.pid} answers: syncbeat " in out
    assert "(rev-1)" in out
    assert "OpsService/GetStatus" in out
    assert stage.identity.service_token not in out
    await two.kill()

    async def alone() -> bool:
        return (await listed(stage, one)).keys() == {one.pid}

    await wait_until(alone, 40.0)


async def test_status_command_reports_refusals_in_one_line(stage: Stage) -> None:
    server = await stage.start_server()
    code, out, err = await status(stage, "--target", server.address, token="nobody-s-token")
    assert (code, out) == (1, "")
    assert "UNAUTHENTICATED" in err
    assert "Traceback" not in err
    assert "nobody-s-token" not in err
    code, _, err = await status(stage, "--target", "127.0.0.1:1")
    assert code == 1
    assert "127.0.0.1:1: UNAVAILABLE" in err
    # To another machine no token goes without TLS: this one speaks none.
    code, _, err = await status(stage, "--target", f"localhost.localdomain:{server.address.rpartition(':')[2]}")
    assert code == 1
    assert "UNAVAILABLE" in err


async def test_status_command_watches_until_interrupted(stage: Stage) -> None:
    server = await stage.start_server()
    file = stage.folder / "watch-token"
    file.write_text(stage.identity.service_token)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", INTERRUPTIBLE, "status", "--token-file", str(file)),
        *("--target", server.address, "--json", "--watch", "0.5"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    first, second = [json.loads(await child.stdout.readline()) for _ in range(2)]
    child.send_signal(2)
    assert await child.wait() == 130
    told = {one["method"]: int(one["calls"]) for one in second["rpcs"]}
    assert first["process"] == second["process"]
    assert told["syncbeat.v1.OpsService/GetStatus"] >= 1
