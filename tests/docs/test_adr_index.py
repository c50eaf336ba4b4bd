"""The index of decisions: fresh, and refused when a decision is malformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.adr_index import FOLDER, INDEX, decision, rendered

pytestmark = pytest.mark.unit

GOOD = """\
# ADR 7: Keep it short

- Date: 2026-11-23
- Status: accepted

## Context

Long texts are not read.

## Decision

Short ones.

## Consequences

They are.
"""


def test_adr_index_is_fresh() -> None:
    decisions = [decision(path) for path in sorted(FOLDER.glob("*.md")) if path != INDEX]
    assert INDEX.read_text() == rendered(decisions)
    assert len(decisions) >= 107, "a decision that no longer holds keeps its file"


def test_adr_index_names_number_title_date_and_status(tmp_path: Path) -> None:
    path = tmp_path / "0007-keep-it-short.md"
    path.write_text(GOOD)
    row = rendered([decision(path)]).splitlines()[-1]
    assert row == "| [7](0007-keep-it-short.md) | Keep it short | 2026-11-23 | accepted |"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("0008-keep-it-short.md", GOOD),
        ("7-keep-it-short.md", GOOD),
        ("0007-keep-it-short.md", GOOD.replace("- Date: 2026-11-23\n", "")),
        ("0007-keep-it-short.md", GOOD.replace("## Consequences", "## Results")),
    ],
)
def test_adr_with_another_number_or_a_missing_part_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=name):
        decision(path)


def test_adr_number_given_out_twice_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "0007-keep-it-short.md", tmp_path / "0007-say-it-twice.md"]
    for path in paths:
        path.write_text(GOOD)
    with pytest.raises(ValueError, match="twice"):
        rendered([decision(path) for path in paths])
