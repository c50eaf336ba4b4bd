"""`syncbeat-server app list` and `app erase`, as an operator runs them beside the servers of a deployment."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.app_rows import PLANTS, count_app_rows, plant_app
from tests.support.databases import DatabaseUrls
from tests.support.operator_commands import run_command

pytestmark = pytest.mark.process

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> Run:
    """Runs `syncbeat-server app` with the settings of a deployment that has the app `shop` beside `default`."""
    apps = tmp_path / "apps.toml"
    apps.write_text('[apps.shop]\njwt_issuer = "https://shop.example"\n')

    def command(*arguments: str, url: str = database_urls.app_url) -> subprocess.CompletedProcess[str]:
        settings = {"SYNCBEAT_DATABASE_URL": url, "SYNCBEAT_REDIS_URL": redis_url, "SYNCBEAT_APPS_FILE": str(apps)}
        return run_command("app", *arguments, settings=settings)

    return command


async def test_app_erase_deletes_only_what_a_removed_app_left(run: Run, database_urls: DatabaseUrls) -> None:
    for app_id in ("shop", "gone"):
        await plant_app(database_urls, app_id, 3)
    before = {app_id: await count_app_rows(database_urls, app_id) for app_id in ("shop", "gone")}
    listed = await asyncio.to_thread(run, "list")
    assert listed.returncode == 0, listed.stderr
    told = dict(line.split(": ", 1) for line in listed.stdout.splitlines())
    assert list(told) == ["gone (not configured)", "shop (configured)"]
    assert told["gone (not configured)"] == ", ".join(f"{table} {n}" for table, n in sorted(before["gone"].items()))

    for arguments, reason in (
        (("erase", "shop", "--confirm", "shop"), "'shop' is configured"),
        (("erase", "default", "--confirm", "default"), "'default' is configured"),
        (("erase", "gone"), "nothing was done; to do it: syncbeat-server app erase gone --confirm gone"),
        (("erase", "gone", "--confirm", "shop"), "nothing was done"),
    ):
        refused = await asyncio.to_thread(run, *arguments)
        assert (refused.returncode, reason in refused.stderr) == (1, True), refused
    owner = await asyncio.to_thread(run, "erase", "gone", "--confirm", "gone", url=database_urls.admin_url)
    assert owner.returncode == 1, "a login that row-level security does not bind is refused"
    assert {app_id: await count_app_rows(database_urls, app_id) for app_id in before} == before

    done = await asyncio.to_thread(run, "erase", "gone", "--confirm", "gone")
    assert done.returncode == 0, done.stderr
    assert all(f"{table}: " in done.stdout for table in PLANTS)
    assert "app 'gone': nothing is left" in done.stdout
    assert not any((await count_app_rows(database_urls, "gone")).values())
    assert await count_app_rows(database_urls, "shop") == before["shop"]
    again = await asyncio.to_thread(run, "erase", "gone", "--confirm", "gone")
    assert (again.returncode, "it had no rows" in again.stdout) == (0, True)
