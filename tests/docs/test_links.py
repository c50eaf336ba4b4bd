"""Links of the committed Markdown pages: each leads to a file of the tree, each anchor to a heading of that file."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.__main__ import FIGURES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

FENCED = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?)[ #]*$", re.MULTILINE)
EXTERNAL = re.compile(r"[a-z][a-z+.-]*:", re.IGNORECASE)
# Folders that a page names by their path from the root. Modules of the service are named below syncbeat_server instead.
NAMED_PATH = re.compile(r"`(?P<path>(?:tests|tools|bench|deploy|docs|protos)/[\w./-]*[\w/])[`:]")
SERVER = ROOT / "server"
# A module or folder of the service, named from the folder below syncbeat_server on: `push/policy/resend.py`.
NAMED_MODULE = re.compile(r"`(?P<path>[a-z_]+(?:/[\w]+)+(?:\.py)?/?)[`:]")
HISTORY = {"CHANGELOG.md"}  # tells of files as they were


def tree() -> list[str]:
    """Return the files of the working tree that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).exists()})


FILES = tree()
PAGES = [name for name in FILES if name.endswith(".md")]


def anchors(markdown: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in HEADING.finditer(FENCED.sub("", markdown)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"]).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        twins = sum(1 for one in found if one == slug or re.fullmatch(re.escape(slug) + r"-\d+", one))
        found.add(f"{slug}-{twins}" if twins else slug)
    return found


def dead_links(page: Path, root: Path) -> Iterator[str]:
    """Yield the links of a page that lead nowhere, or out of the tree."""
    for link in LINK.finditer(CODE.sub("", FENCED.sub("", page.read_text()))):
        target, _, anchor = link["target"].partition("#")
        if EXTERNAL.match(link["target"]):
            continue
        to = (page.parent / target).resolve() if target else page
        found = to.is_relative_to(root) and to.exists()
        if found and anchor:
            found = to.suffix == ".md" and anchor in anchors(to.read_text())
        if not found:
            yield link["target"]


def test_link_check_finds_dead_files_and_anchors(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# One heading: `code`, twice\n\n## Same\n\n## Same\n\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#one-heading-code-twice) [c](other.md#same-1)\n"
        "[d](https://example.com/x) `[e](gone.md)`\n"
        "[f](gone.md) [g](other.md#no-heading) [h](#nothing) [i](../outside.md)\n```\n[j](gone.md)\n```\n"
    )
    assert list(dead_links(page, tmp_path)) == ["gone.md", "other.md#no-heading", "#nothing", "../outside.md"]


def test_links_and_anchors_resolve() -> None:
    assert len(PAGES) > 100, "the decisions alone are more"
    assert [(name, link) for name in PAGES for link in dead_links(ROOT / name, ROOT)] == []


def test_paths_named_in_pages_exist() -> None:
    named = [
        (name, match["path"])
        for name in PAGES
        if name not in HISTORY
        for match in NAMED_PATH.finditer((ROOT / name).read_text())
    ]
    assert len(named) > 100, "tests and tools are named by their paths"
    assert [(name, path) for name, path in named if not (ROOT / path).exists()] == []


def module_exists(path: str) -> bool:
    """True if the path is a module or folder below syncbeat_server, or begins with syncbeat_devtools."""
    base = SERVER if path.startswith("syncbeat_devtools/") else SERVER / "syncbeat_server"
    return (base / path).exists() or (base / f"{path}.py").exists()


def test_modules_named_in_pages_exist() -> None:
    folders = {"syncbeat_devtools", *(one.name for one in (SERVER / "syncbeat_server").iterdir() if one.is_dir())}
    named = [
        (name, match["path"])
        for name in PAGES
        if name not in HISTORY
        for match in NAMED_MODULE.finditer((ROOT / name).read_text())
        if match["path"].split("/")[0] in folders
    ]
    assert len(named) > 100, "decisions name the modules that carry them out"
    assert [(name, path) for name, path in named if not module_exists(path)] == []


def test_adr_numbers_named_in_code_and_pages_exist() -> None:
    decisions = {int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")}
    named = [
        (name, int(number))
        for name in FILES
        if name.endswith((".md", ".py", ".sql", ".proto", ".yaml", ".toml")) and not name.startswith("tests/docs/")
        for match in re.finditer(r"\bADRs? (?P<numbers>\d+(?:(?:, | and )\d+)*)", (ROOT / name).read_text())
        for number in re.findall(r"\d+", match["numbers"])
    ]
    assert {"server/syncbeat_server/storage/batcher.py", "ARCHITECTURE.md"} <= {name for name, _ in named}
    assert [(name, number) for name, number in named if number not in decisions] == []


def test_figures_named_in_pages_are_measured() -> None:
    named = {
        (name, figure)
        for name in PAGES
        for match in re.finditer(r"`make bench [^`]*ONLY=(?P<figures>[a-z0-9_,]+)", (ROOT / name).read_text())
        for figure in match["figures"].split(",")
    }
    assert len(named) > 5, "figures stand beside the command that shows them"
    assert {(name, figure) for name, figure in named if figure not in {"name", "peers", *FIGURES}} == set()


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_front_pages_stay_short(name: str) -> None:
    assert len((ROOT / name).read_bytes()) <= 10_240, "longer texts go to docs/"
