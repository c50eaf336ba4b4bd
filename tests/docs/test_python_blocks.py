"""Every block of Python in a page runs as it stands, against what `make run` serves, and prints what is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, blocks_of, run_program

pytestmark = pytest.mark.process

PAGES = sorted(
    {*ROOT.glob("*.md"), *(page for top in ("clients", "docs", "server") for page in (ROOT / top).rglob("*.md"))}
)
PROGRAMS = [block for page in PAGES for block in blocks_of(page) if block.language == "python"]


def told_output(program: Block) -> str | None:
    """Return what a page says that a program prints: the block of text after the words `It prints:`."""
    blocks = blocks_of(ROOT / program.page)
    following = blocks[blocks.index(program) + 1 :]
    return following[0].text if following and program.prose_after == "It prints:" else None


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.place for program in PROGRAMS])
def test_python_block_runs(program: Block, reader_environment: dict[str, str], tmp_path: Path) -> None:
    done = run_program(program.text, reader_environment, tmp_path)
    assert done.returncode == 0, done.stderr
    told = told_output(program)
    assert told is None or done.stdout == told


def test_python_blocks_are_found() -> None:
    assert {"docs/quickstart.md", "docs/fake-fcm.md", "docs/tokens.md", "docs/guides/supabase.md"} <= {
        program.page for program in PROGRAMS
    }
    languages = {block.language for page in PAGES for block in blocks_of(page)}
    assert not languages & {"py", "python3", "Python", "pycon"}, "a block under another name would not run"


def test_python_block_that_fails_is_seen(reader_environment: dict[str, str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```sh\nmake run\n```\n\nSay:\n\n```python\nraise SystemExit('wrong')\n```\n")
    (shell, program) = blocks_of(page)
    assert (shell.language, shell.prose_after, program.line) == ("sh", "Say:", 9)
    done = run_program(program.text, reader_environment, tmp_path)
    assert (done.returncode, done.stderr) == (1, "wrong\n")


def test_quickstart_has_25_lines_at_most() -> None:
    (program,) = [program for program in PROGRAMS if program.page == "docs/quickstart.md"]
    assert len(program.text.splitlines()) <= 25
    assert told_output(program) is not None
