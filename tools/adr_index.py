"""Writes docs/adr/README.md, the index of decisions, from the files beside it; `--check` only compares, for lint."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "adr"
INDEX = FOLDER / "README.md"
NAME = re.compile(r"(?P<number>\d{4})-[a-z0-9]+(?:-[a-z0-9]+)*\.md")
HEAD = re.compile(
    r"# ADR (?P<number>\d+): (?P<title>[^\n]+)\n\n"
    r"- Date: (?P<date>\d{4}-\d\d-\d\d)\n- Status: (?P<status>[a-z][^\n]*)\n"
)
SECTIONS = ("## Context\n", "## Decision\n", "## Consequences\n")
PREAMBLE = """\
# Decisions

Each file is one decision: its context, the decision, its consequences, and a measurement where there is a figure.
Code, tests and other pages refer to them by number ("ADR 20"). A decision that no longer holds keeps its file and
says in its status which one replaced it. Numbers that are missing were never given out.

This table is written by `tools/adr_index.py`; `make lint` fails when it is not fresh.

| ADR | decision | date | status |
|---|---|---|---|
"""


class Decision(NamedTuple):
    """One decision as the index names it."""

    number: int
    title: str
    date: str
    status: str
    file: str


def main() -> int:
    """Write the index, or compare it. Returns 1 when a file is malformed or, with --check, the index is stale."""
    try:
        wanted = rendered([decision(path) for path in sorted(FOLDER.glob("*.md")) if path != INDEX])
    except ValueError as error:
        print(error)
        return 1
    if "--check" not in sys.argv[1:]:
        INDEX.write_text(wanted)
        return 0
    if not INDEX.exists() or INDEX.read_text() != wanted:
        print("docs/adr/README.md is stale: run .venv/bin/python tools/adr_index.py")
        return 1
    return 0


def decision(path: Path) -> Decision:
    """Read a decision's head. Raises ValueError: the name, the head or a section is not as all others have it."""
    name = NAME.fullmatch(path.name)
    text = path.read_text()
    head = HEAD.match(text)
    if name is None or head is None or int(name["number"]) != int(head["number"]):
        raise ValueError(f"{path.name}: needs the name NNNN-title.md and the head of docs/adr/0001")
    missing = [section.strip() for section in SECTIONS if section not in text]
    if missing:
        raise ValueError(f"{path.name}: lacks {', '.join(missing)}")
    return Decision(int(head["number"]), head["title"], head["date"], head["status"], path.name)


def rendered(decisions: list[Decision]) -> str:
    """Return the index's text. Raises ValueError: two files have one number."""
    numbers = [one.number for one in decisions]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        raise ValueError(f"numbers given out twice: {twice}")
    rows = [f"| [{one.number}]({one.file}) | {one.title} | {one.date} | {one.status} |\n" for one in decisions]
    return PREAMBLE + "".join(rows)


if __name__ == "__main__":
    sys.exit(main())
