"""The Markdown pages of the repository, and their blocks of code as their readers run them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 60.0

_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: where it begins, its language, its text, and the prose up to the next block."""

    page: str
    line: int
    language: str
    text: str
    prose_after: str

    @property
    def place(self) -> str:
        """The page and the line, as an editor opens it."""
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page that name a language, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(text))
    ends = [*(one.start() for one in found), len(text)][1:]
    return [
        Block(
            page=str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name,
            line=text.count("\n", 0, one.start()) + 1,
            language=one["language"],
            text=one["text"],
            prose_after=text[one.end() : end].strip(),
        )
        for one, end in zip(found, ends, strict=True)
    ]


def run_program(text: str, environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of a page as its reader would, and return what came of it."""
    program = folder / "program.py"
    program.write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, program.name],
        cwd=folder,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
