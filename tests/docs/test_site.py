"""The site is built strictly: what leads nowhere fails it, and links out of docs/ become the paths they lead to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = pytest.mark.process


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with docs of its own, whose other files are ours."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    for entry in ROOT.iterdir():
        if entry.name not in ("docs", "build"):
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def build(repository: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `make lint` does."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=repository,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("index.md", "[x](gone.md)", "'gone.md', but the target is not found"),
        ("index.md", "[x](limits.md#gone)", "does not contain an anchor '#gone'"),
        ("index.md", "[x](../tools/gone.py)", "links to ../tools/gone.py, which does not exist"),
        ("stray.md", "# Stray", 'not included in the "nav"'),
    ],
)
def test_site_build_fails_on_dead_links_and_stray_pages(repository: Path, page: str, text: str, said: str) -> None:
    with (repository / "docs" / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    done = build(repository)
    assert done.returncode == 1
    assert said in done.stderr


def test_site_shows_paths_for_links_out_of_docs(repository: Path) -> None:
    with (repository / "docs/index.md").open("a", encoding="utf-8") as file:
        file.write("\n[the alarms](../deploy/prometheus/alerts.yml)\n\n```text\n[kept](../tools/gone.py)\n```\n")
    done = build(repository)
    assert done.returncode == 0, done.stderr
    page = (repository / "build/site/index.html").read_text(encoding="utf-8")
    assert "<p>the alarms (<code>deploy/prometheus/alerts.yml</code>)</p>" in page
    assert "[kept](../tools/gone.py)" in page


def test_site_fetches_no_fonts_or_scripts(repository: Path) -> None:
    assert build(repository).returncode == 0
    pages = list((repository / "build/site").rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page
        assert "fonts.googleapis.com" not in text, page
