"""The guide from the Realtime Database, followed with nothing but its text against what `make run` serves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import Serving, serving
from tests.docs.migration_guide import GUIDE, commands_of
from tests.docs.migration_team import Team

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def served() -> Iterator[Serving]:
    """A deployment of this test's own: `verify` looks at all of it."""
    with serving(["demo", "--serve"], "RevokeUser", {"SYNCBEAT_LISTEN": "127.0.0.1:0"}) as running:
        yield running


async def test_migration_guide_is_followed_to_its_end(served: Serving, tmp_path: Path) -> None:
    await Team(served, tmp_path).follow()


def test_migration_guide_says_how_to_take_each_step_back() -> None:
    text = (GUIDE / "index.md").read_text(encoding="utf-8")
    for step in ("4. Backfill", "5. Verify", "7. Read from Syncbeat", "8. Cut over"):
        section = text.partition(f"## {step}")[2].partition("\n## ")[0]
        assert "**Go on**" in section, step
        assert "oll back" in section, step
    assert "reconcile" in "".join(commands_of("index.md"))
