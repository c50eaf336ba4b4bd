"""Tests `syncbeat-server soak` on real processes: a minute of it, killed in between, and a slow server found."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_devtools.soak.load.fleet import METHODS
from syncbeat_server.ops.settings.types import token_digest
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.soaks import LOOSE, finish_soak, saved_elapsed_s, start_soak
from tests.support.tcp_relays import Fault, relayed

pytestmark = [pytest.mark.process, pytest.mark.slow]

OPERATIONS = {"poll", "list", "publish", "refresh", "event", "push", "stream"}
KILLED_S = 20.0


@pytest.fixture
async def stage(stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Stage]:
    async with running_stage(stores, tmp_path, database_url=database_urls.app_url) as staging:
        digest = token_digest(staging.identity.service_token)
        staging.settings["SYNCBEAT_SERVICE_TOKENS"] = f"soak:{digest}:{'|'.join(METHODS)}:*"
        yield staging


@pytest.mark.timeout(300)
async def test_soak_of_a_minute_is_ok_and_goes_on_after_kill_9(
    stage: Stage, database_urls: DatabaseUrls, free_port: int, tmp_path: Path
) -> None:
    out = tmp_path / "soak"
    metrics = f"127.0.0.1:{free_port}"
    stage.settings["SYNCBEAT_OPS_LISTEN"] = metrics
    await stage.start_server()
    del stage.settings["SYNCBEAT_OPS_LISTEN"]
    await stage.start_worker()
    load = ("--duration", "60s", "--rate", "6", "--metrics", f"http://{metrics}/metrics", "--save-every", "1", *LOOSE)
    killed = await start_soak(stage, out, *load)
    await wait_until(lambda: saved_elapsed_s(out) >= KILLED_S, 120.0)
    killed.kill()
    await killed.communicate()
    before_s = saved_elapsed_s(out)
    code, report, text = await finish_soak(await start_soak(stage, out, *load, "--resume"), out)
    assert (code, report["verdict"]) == (0, "OK"), text
    assert report["lives"] == 2
    assert report["elapsed_s"] == pytest.approx(60.0, abs=1.0)
    assert report["operations"].keys() == OPERATIONS
    assert all(one["calls"] for one in report["operations"].values())
    points, width_s = report["series"]["points"], report["series"]["width_s"]
    assert sum(one["calls"] for one in points if one["at_s"] + width_s < before_s) > 0
    assert report["push"]["accepted"] == 1.0
    assert report["staleness"]["poll"]["changes"] > 0
    assert report["staleness"]["stream"]["changes"] > 0
    assert report["server"]["cpu_s_per_call"] > 0
    assert report["server"]["rss_mib_at_end"] > 10
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
    assert stage.identity.service_token not in text + (out / "report.html").read_text()
    conn = await asyncpg.connect(database_urls.admin_url)
    try:
        assert await conn.fetchval("SELECT count(*) FROM devices") == 0  # the users of both lives were the same
    finally:
        await conn.close()


@pytest.mark.timeout(240)
async def test_soak_of_a_slower_server_warns_beside_the_earlier_report(stage: Stage, tmp_path: Path) -> None:
    await stage.start_server()
    load = ("--duration", "12s", "--rate", "12", "--mix", "poll=10,publish=90,push=0", "--devices", "8", *LOOSE)
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, text = await finish_soak(await start_soak(stage, first, *load), first)
    assert code == 0, text
    async with relayed(stage.servers[0].address) as relay:
        relay.begin(Fault.LATENCY)
        compared = ("--compare", str(first / "report.json"))
        child = await start_soak(stage, second, *load, *compared, target=relay.address)
        code, report, text = await finish_soak(child, second)
    assert (code, report["verdict"]) == (3, "WARN"), text
    warned = {one["name"] for one in report["triggers"] if one["verdict"] == "WARN"}
    assert "publish_p95_over_earlier" in warned
    assert all(name.endswith("_over_earlier") for name in warned)


async def test_soak_refuses_another_run_in_place_of_one_that_was_not_finished(stage: Stage, tmp_path: Path) -> None:
    await stage.start_server()
    out = tmp_path / "soak"
    load = ("--duration", "30s", "--rate", "5", "--devices", "2")
    child = await start_soak(stage, out, *load, "--save-every", "1")
    await wait_until(lambda: saved_elapsed_s(out) > 0.0)
    child.terminate()
    _, told = await child.communicate()
    assert child.returncode == 130
    assert "--resume goes on" in told.decode()
    for options, reason in (
        (load, "a run was not finished"),
        ((*load, "--seed", "2", "--resume"), "the run had other options: seed"),
        ((*load, "--resume", "--compare", str(out / "none.json")), "--compare: .*none.json"),
    ):
        again = await start_soak(stage, out, *options)
        _, told = await again.communicate()
        assert again.returncode == 1
        assert told.decode().count("\n") == 1
        assert re.search(reason, told.decode())
