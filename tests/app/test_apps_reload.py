"""The apps file, read anew while the process runs: what cannot be used changes nothing, and is said once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.load import load_settings
from tests.support.fake_clock import FakeClock, wait_until
from tests.support.file_damage import NOT_APPS, put, remove

pytestmark = pytest.mark.unit

GOOD = '[apps.default.templates.note]\ndefault = { title = "one" }\n'
OTHER = '[apps.default.templates.note]\ndefault = { title = "two" }\n'
SHOP = '[apps.shop]\njwt_issuer = "https://shop.example"\n'


class Running:
    """`Apps` at work, on a clock that is moved by hand."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.clock = FakeClock()
        self.apps = AppConfiguration(load_settings({"SYNCBEAT_APPS_FILE": str(file)}, env_file=None), self.clock)

    async def look(self, times: int = 1) -> None:
        """Let it look at the files."""
        for _ in range(times):
            await self.clock.advance(2.0)
            await wait_until(lambda: self.clock.sleepers == 1, what="it has looked, in a thread, and sleeps again")

    @property
    def title(self) -> str:
        return self.apps.templates("default")["note"].render("default", {})[0]


@asynccontextmanager
async def running(file: Path) -> AsyncIterator[Running]:
    made = Running(file)
    task = asyncio.create_task(made.apps.run())
    try:
        await made.look()
        yield made
        assert not task.done(), task
    finally:
        task.cancel()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "apps.toml"
    path.write_text(GOOD)
    return path


def put_at_the_same_time(path: Path, text: str) -> None:
    """Let it hold a text of the same length: same inode, same times."""
    found = path.stat()
    put(path, text)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert path.stat().st_ino == found.st_ino


def publish(folder: Path, name: str, text: str) -> None:
    """Publish a configmap as Kubernetes does: `..data` leads to a folder of its time, and is renamed over."""
    (folder / name).mkdir()
    put(folder / name / "apps.toml", text)
    (folder / "..data_tmp").symlink_to(name)
    (folder / "..data_tmp").rename(folder / "..data")


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(record.__dict__["fault"]) for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("shape", NOT_APPS)
async def test_reload_of_unusable_apps_file_changes_nothing_and_is_logged_once(
    file: Path, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(file) as run:
        before = run.apps.current
        remove(file)
        NOT_APPS[shape](file)
        await run.look(4)
        assert run.apps.current is before
        assert run.title == "one"
        assert len(errors(caplog)) == 1, errors(caplog)
        remove(file)
        put(file, OTHER)
        await run.look(2)
        assert run.title == "two"
        assert [record.message for record in caplog.records][1:] == [
            "apps read anew",
            "the apps file can be used again",
        ]


async def test_reload_error_is_logged_once_per_cause_and_its_end_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running(file) as run:
        for content in ("half", "", "half"):
            put(file, content)
            await run.look(3)
        put(file, GOOD)
        await run.look(3)
        assert run.title == "one"
    assert len(errors(caplog)) == 3
    assert [record.message for record in caplog.records if record.levelno == logging.INFO] == [
        "the apps file can be used again"
    ]


async def test_reload_sees_a_change_within_one_clock_tick(file: Path) -> None:
    async with running(file) as run:
        for text, title in ((OTHER, "two"), (GOOD, "one"), (OTHER, "two")):
            put_at_the_same_time(file, text)
            await run.look(2)
            assert run.title == title


async def test_reload_of_half_written_file_removes_no_app(file: Path) -> None:
    put(file, GOOD + SHOP)
    async with running(file) as run:
        assert "shop" in run.apps.current
        put(file, OTHER)  # good as far as it has come
        await run.look()
        assert "shop" in run.apps.current
        put(file, OTHER + SHOP)
        await run.look(2)
        assert (run.title, "shop" in run.apps.current) == ("two", True)


async def test_reload_removes_an_app_that_left_the_file(file: Path) -> None:
    put(file, GOOD + SHOP)
    async with running(file) as run:
        put(file, GOOD)
        await run.look(2)
        assert list(run.apps.current) == ["default"]


async def test_reload_follows_a_kubernetes_configmap_swap(tmp_path: Path) -> None:
    publish(tmp_path, "..2026_1", GOOD)
    file = tmp_path / "apps.toml"
    os.symlink("..data/apps.toml", file)
    async with running(file) as run:
        publish(tmp_path, "..2026_2", OTHER)
        remove(tmp_path / "..2026_1")
        await run.look(2)
        assert run.title == "two"
        remove(tmp_path / "..2026_2")
        await run.look(2)
        assert run.title == "two"
        publish(tmp_path, "..2026_3", GOOD)
        await run.look(2)
        assert run.title == "one"


async def test_reload_is_undone_for_all_when_a_watcher_raises(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(file) as run:
        heard: list[list[str]] = [[], []]
        refusing = True

        def refuse() -> None:
            if refusing and run.title == "two":
                raise RuntimeError("not now")

        run.apps.on_change(lambda: heard[0].append(run.title))
        run.apps.on_change(refuse)
        run.apps.on_change(lambda: heard[1].append(run.title))
        put(file, OTHER + SHOP)
        await run.look(4)
        assert (run.title, list(run.apps.current)) == ("one", ["default"])
        assert heard[0] == heard[1]
        assert heard[0][-1] == "one"
        assert errors(caplog) == ["RuntimeError"]
        refusing = False
        await run.look()
        assert (run.title, sorted(run.apps.current)) == ("two", ["default", "shop"])
        assert [one[-1] for one in heard] == ["two", "two"]


async def test_apps_that_a_check_refuses_reach_no_watcher(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[list[str]] = []

    def without_shop(apps: Mapping[str, AppSettings]) -> None:
        if "shop" in apps:
            raise ConfigurationError("no shop here")

    async with running(file) as run:
        run.apps.require(without_shop)
        run.apps.on_change(lambda: heard.append(sorted(run.apps.current)))
        put(file, GOOD + SHOP)
        await run.look(5)
        assert (heard, errors(caplog)) == ([], ["no shop here"])
        put(file, OTHER)
        await run.look(2)
        assert (heard, run.title) == ([["default"]], "two")


async def test_credentials_change_is_announced_and_missing_ones_hold_nothing_up(file: Path, tmp_path: Path) -> None:
    account = tmp_path / "account.json"
    put(account, "{}")
    put(file, GOOD + SHOP + f'fcm_credentials = "{account}"\n')
    async with running(file) as run:
        told = []
        run.apps.on_change(lambda: told.append(run.title))
        put(account, "{ }")
        await run.look()
        assert told == ["one"]
        remove(account)
        put(file, OTHER + SHOP + f'fcm_credentials = "{account}"\n')
        await run.look(2)
        assert run.title == "two"  # another file that is gone does not keep the texts from it


async def test_credentials_gone_since_they_were_read_are_announced(file: Path, tmp_path: Path) -> None:
    account = tmp_path / "account.json"
    put(account, "{}")
    put(file, f'[apps.shop]\njwt_issuer = "https://shop.example"\nfcm_credentials = "{account}"\n')
    async with running(file) as at:
        changes: list[bool] = []
        at.apps.on_change(lambda: changes.append(True))
        at.apps.read_credentials(account)
        remove(account)
        await at.look()
        assert changes == [True]
        # While the change is followed the file is back; before the next look it is gone again, as that saw it before.
        put(account, "{}")
        at.apps.read_credentials(account)
        remove(account)
        await at.look()
        assert changes == [True, True]
        at.apps.read_credentials(account)
        await at.look(2)
        assert changes == [True, True], "what is in use is not told"
