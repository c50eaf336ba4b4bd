"""docs/fake-fcm.md names every control path, every kind of fault and every option that the fake has, and no others."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from syncbeat_devtools.fake_fcm import FaultKind
from syncbeat_devtools.fake_fcm.control import ROUTES
from syncbeat_devtools.fake_fcm.faults.plan import parse_fault_token
from tests.docs.pages import ROOT

pytestmark = pytest.mark.process

PAGE = (ROOT / "docs/fake-fcm.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[str]:
    """Return the first cell of each row of the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| (`.*?) \| ", section, re.MULTILINE)


def test_control_paths_of_the_page_are_the_routes() -> None:
    assert sorted(rows_of("Control")) == sorted(f"`{method} {path}`" for method, path in ROUTES)


def test_fault_kinds_of_the_page_are_those_of_the_fake() -> None:
    named = [kind for row in rows_of("Faults") for kind in re.findall("`(.*?)`", row)]
    assert sorted(named) == sorted(kind.value for kind in FaultKind)
    examples = re.findall(r"`(fault:[a-z0-9].*?)`", PAGE)
    assert [parse_fault_token(example).kind for example in examples] == [
        FaultKind.UNAVAILABLE,
        FaultKind.QUOTA_EXCEEDED,
    ]


def usage_of_the_command() -> str:
    command = [sys.executable, "-m", "syncbeat_server.cli", "fake-fcm", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_control_paths_of_the_help_are_the_routes() -> None:
    named = re.findall(r"^  (GET|POST|DELETE) +(/control/\S+)  +\S", usage_of_the_command(), re.MULTILINE)
    assert sorted(named) == sorted(ROUTES)


def test_options_of_the_page_are_those_of_the_command() -> None:
    usage = usage_of_the_command()
    named = re.findall(r"--[a-z0-9-]+", " ".join(rows_of("Run it")))
    assert sorted(named) == sorted(set(re.findall(r"--[a-z0-9-]+", usage)) - {"--help"})
