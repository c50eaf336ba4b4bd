"""Tests `syncbeat-server slo` on a real process: verdicts by exit code, figures from outside, comparisons."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls

pytestmark = [pytest.mark.process, pytest.mark.slow]

OK, FAILED, WARN, ROLLBACK = 0, 1, 3, 4


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        staging.settings["SYNCBEAT_SLO_FIGURES"] = "complaints>5>20"
        yield staging


async def slo(*arguments: str, folder: Path, **settings: str) -> tuple[int, str, str]:
    """Run the command to its end: its exit code and what it wrote."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "syncbeat_server.cli", "slo", *arguments),
        env={name: text for name, text in os.environ.items() if not name.startswith("SYNCBEAT_")} | settings,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    return child.returncode or 0, out.decode(), err.decode()


async def put(stage: Stage, name: str, value: str) -> tuple[int, str, str]:
    wanted = ("SYNCBEAT_DATABASE_URL", "SYNCBEAT_REDIS_URL", "SYNCBEAT_SLO_FIGURES")
    settings = {name: stage.settings[name] for name in wanted if name in stage.settings}
    return await slo("put", name, value, folder=stage.folder, **settings)


async def test_slo_report_exits_by_its_verdict(stage: Stage) -> None:
    server = await stage.start_server()
    token = stage.folder / "token"
    token.write_text(stage.identity.service_token)

    async def report(*arguments: str) -> tuple[int, str, str]:
        target = ("--target", server.address, "--token-file", str(token))
        return await slo("report", *target, *arguments, folder=stage.folder)

    code, out, err = await report()
    assert (code, err) == (OK, "")
    assert out.startswith("OK over ")
    assert "availability_fast_burn" in out
    assert stage.identity.service_token not in out
    code, out, _ = await report("--json", "--window", "60")
    assert (code, json.loads(out)["verdict"]) == (OK, "SLO_VERDICT_OK")

    earlier = stage.folder / "earlier.json"
    told: dict[str, Any] = json.loads(out)
    earlier.write_text(out)
    code, out, _ = await report("--compare", str(earlier))
    assert code == OK
    earlier.write_text(json.dumps({**told, "workload": "nothing"}))
    code, out, err = await report("--compare", str(earlier))
    assert (code, out) == (FAILED, "")
    assert "--compare" in err

    for value, wanted in (("5", OK), ("6", WARN), ("21", ROLLBACK)):
        assert (await put(stage, "complaints", value))[0] == OK
        code, out, _ = await report("--json")
        assert (code, next(one["value"] for one in json.loads(out)["triggers"] if one["name"] == "complaints")) == (
            wanted,
            float(value),
        )

    conn = await asyncpg.connect(stage.settings["SYNCBEAT_DATABASE_URL"])
    entries = await conn.fetch("SELECT app_id, actor, subject, details FROM audit_entries WHERE action = 'FIGURE_PUT'")
    await conn.close()
    assert {(one["app_id"], one["actor"].partition(":")[0], one["subject"]) for one in entries} == {
        ("", "operator", "deployment")
    }
    assert [json.loads(one["details"]) for one in entries] == [
        {"name": "complaints", "value": value} for value in ("5", "6", "21")
    ]

    code, out, err = await put(stage, "tickets", "1")
    assert (code, out) == (FAILED, "")
    assert "SYNCBEAT_SLO_FIGURES, which names complaints" in err
    assert (await put(stage, "complaints", "nan"))[0] == FAILED

    await server.kill()
    code, out, err = await report()
    assert (code, out) == (FAILED, "")
    assert "UNAVAILABLE" in err
    assert "Traceback" not in err
