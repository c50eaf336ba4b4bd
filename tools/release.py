"""Parts of `tools/release.sh`: the notes of a version from CHANGELOG.md, and the checks of what was built.

`release.py notes [--unreleased]` prints the section of the present version; `release.py check FOLDER` checks the one
wheel and the one source distribution in it.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from syncbeat_server import __version__

ROOT = Path(__file__).resolve().parent.parent
_SECTION = re.compile(r"^## (?P<name>\S+)(?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
# Not within an address, which has pages of others.
_PAGE = re.compile(r"(?<![\w/])docs/[\w./-]+\.(?:md|png)\b")
_LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")
# What the wheel cannot work without, and nothing imports.
_IN_WHEEL = ("syncbeat/py.typed", "syncbeat_server/storage/migrations/0001_", "syncbeat_devtools/demo/run.py")
_IN_SDIST = ("Makefile", "compose.yaml", "deploy/postgres/", "protos/syncbeat/v1/", "requirements/server.txt", "tests/")


class NotFit(Exception):
    """The release cannot be made; the text says why."""


def main() -> int:
    """Run one part; print the reason and return 1 if it refuses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(required=True, dest="part")
    parts.add_parser("notes").add_argument("--unreleased", action="store_true")
    parts.add_parser("check").add_argument("folder", type=Path)
    parsed = parser.parse_args()
    try:
        if parsed.part == "notes":
            changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
            print(notes(changelog, "Unreleased" if parsed.unreleased else __version__))
        else:
            for line in check(parsed.folder):
                print(f"release: {line}")
    except NotFit as reason:
        print(f"release: {reason}", file=sys.stderr)
        return 1
    return 0


def notes(changelog: str, version: str) -> str:
    """Return the section of a version, which is the first one and has a date, or that of what is unreleased."""
    found = next(_SECTION.finditer(changelog), None)
    if found is None or found["name"] != version:
        raise NotFit(f"CHANGELOG.md: its first section is to be '## {version} - YYYY-MM-DD'")
    if version != "Unreleased" and found["date"] is None:
        raise NotFit(f"CHANGELOG.md: the section of {version} needs its date: '## {version} - YYYY-MM-DD'")
    following = _SECTION.search(changelog, found.end())
    text = changelog[found.end() : following.start() if following else None].strip()
    if not text:
        raise NotFit(f"CHANGELOG.md: the section of {version} is empty")
    return text


def check(folder: Path) -> Iterator[str]:
    """Check the distributions in a folder: their version, and that all is in them. Yields what holds."""
    wheel = _only(folder, "*.whl")
    sdist = _only(folder, "*.tar.gz")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        metadata = packed.read(f"syncbeat-{__version__}.dist-info/METADATA").decode()
    told = Parser().parsestr(metadata)
    if (told["Version"], told["License-Expression"]) != (__version__, "Apache-2.0"):
        raise NotFit(f"{wheel.name}: it is {told['Version']}, under {told['License-Expression']}")
    _require(wheel, names, _IN_WHEEL)
    yield f"{wheel.name}: {len(names)} files, version {told['Version']}, licence {told['License-Expression']}"
    with tarfile.open(sdist) as packed_source:
        files = {member.name.partition("/")[2]: member for member in packed_source.getmembers() if member.isfile()}
        texts = {
            name: _text(packed_source, member)
            for name, member in files.items()
            if name.startswith("server/") and name.endswith(".py")
        }
        readme = _text(packed_source, files["README.md"])
    named = {page for text in texts.values() for page in _PAGE.findall(text)} | set(_LINK.findall(readme))
    _require(sdist, list(files), (*_IN_SDIST, *sorted(named)))
    yield f"{sdist.name}: {len(files)} files, and the {len(named)} pages that messages and README.md refer to"


def _text(packed: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = packed.extractfile(member)
    if content is None:
        raise NotFit(f"{member.name}: it is no file")
    return content.read().decode()


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise NotFit(f"{folder}: want one {pattern}, found {len(found)}")
    return found[0]


def _require(archive: Path, names: list[str], prefixes: tuple[str, ...]) -> None:
    lacking = [prefix for prefix in prefixes if not any(name.startswith(prefix) for name in names)]
    if lacking:
        raise NotFit(f"{archive.name} lacks {', '.join(lacking)}")


if __name__ == "__main__":
    sys.exit(main())
