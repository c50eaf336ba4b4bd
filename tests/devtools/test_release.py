"""Builds by `tools/release.sh` hold all that they refer to, and the version is said in one place."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from syncbeat_server import __version__
from tests.docs.pages import ROOT
from tools.release import NotFit, check, notes

pytestmark = pytest.mark.process

CHANGELOG = """# Changelog

Words.

## 1.2.0 - 2026-12-01

### Added

- One.

## 1.1.0 - 2026-11-01

- Two.
"""


def build(source: Path, target: str, folder: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=100)


def test_release_archives_hold_what_they_refer_to(tmp_path: Path) -> None:
    dist, source = tmp_path / "dist", tmp_path / "source"
    build(ROOT, "sdist", dist)
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(source, filter="data")
    (unpacked,) = source.iterdir()
    build(unpacked, "wheel", dist)
    wheel, sdist = check(dist)
    assert f"version {__version__}, licence Apache-2.0" in wheel
    assert int(re.findall(r"the (\d+) pages", sdist)[0]) > 20
    assert not [path for path in unpacked.rglob("*") if path.suffix == ".whl" or path.name in (".venv", ".env")]
    (unpacked / "docs/fake-fcm.md").unlink()
    archive.unlink()
    build(unpacked, "sdist", dist)
    with pytest.raises(NotFit, match=r"lacks docs/fake-fcm\.md"):
        list(check(dist))
    (dist / "another.whl").touch()
    with pytest.raises(NotFit, match=r"want one \*\.whl, found 2"):
        list(check(dist))


def test_release_notes_are_the_section_of_the_version() -> None:
    assert notes(CHANGELOG, "1.2.0") == "### Added\n\n- One."
    assert notes(CHANGELOG.replace("1.2.0 - 2026-12-01", "Unreleased"), "Unreleased") == "### Added\n\n- One."
    for changelog, told in (
        (CHANGELOG.replace("1.2.0 - 2026-12-01", "Unreleased"), "its first section is to be '## 1.2.0 - YYYY-MM-DD'"),
        (CHANGELOG.replace(" - 2026-12-01", ""), "needs its date"),
        (CHANGELOG.replace("### Added\n\n- One.\n", ""), "is empty"),
    ):
        with pytest.raises(NotFit, match=re.escape(told)):
            notes(changelog, "1.2.0")


def test_release_version_is_said_in_one_place() -> None:
    tracked = ("pyproject.toml", "Dockerfile", "Makefile", "compose.yaml", "tools/release.sh", "docs/operations.md")
    assert not [name for name in tracked if __version__ in (ROOT / name).read_text(encoding="utf-8")]
    assert f"**Status**: {'.'.join(__version__.split('.')[:2])}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_release_script_refuses_what_it_does_not_know() -> None:
    done = subprocess.run(["sh", "tools/release.sh", "--now"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: tools/release.sh [--dry-run]\n")
