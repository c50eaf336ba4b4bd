"""Live writes, deletions and imports in any order end in the newest of each key by source time."""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.feed.writer import Append, append
from syncbeat_server.sync.model import NewChange
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.importing.batches import ImportSource
from syncbeat_server.transfer.importing.importer import Importer
from syncbeat_server.transfer.importing.throttle import ThrottleRule
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import Json
from syncbeat_server.transfer.rtdb.shapes import json_text
from tests.support.build import APP
from tests.support.fake_clock import FakeClock

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

_START = datetime(2026, 1, 1, tzinfo=UTC)
_KEYS = ("a", "b", "c")


@dataclass(frozen=True)
class Step:
    """Writes keys as of a minute: by an import, or live; None is a deletion, of which only live writes know."""

    minute: int
    values: dict[str, int | None]
    imports: bool


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Draw steps of different minutes, in an order of their own; some come twice, as a repeated import does."""
    minutes = draw(st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True))
    steps = []
    for minute in minutes:
        imports = draw(st.booleans())
        values = st.integers(0, 3) if imports else st.one_of(st.none(), st.integers(0, 3))
        steps.append(Step(minute, draw(st.dictionaries(st.sampled_from(_KEYS), values, min_size=1)), imports))
    return [*steps, *draw(st.lists(st.sampled_from(steps), max_size=2))]


async def _take(database: Database, clock: FakeClock, scope: str, number: int, step: Step) -> None:
    at = _START + timedelta(minutes=step.minute)
    if not step.imports:
        changes = tuple(
            NewChange(scope, key, "" if value is None else str(value), deleted=value is None, source_time=at)
            for key, value in step.values.items()
        )
        async with database.transaction() as conn:
            await append(conn, [Append(APP, changes)], lambda _: DEFAULT_PRIOR, create_scopes=True)
        return
    rules = parse_map(f'version = 1\n[[value]]\npath = "t/{{key}}"\nscope = "{scope}"\nkey = "{{key}}"\n')
    tree: Json = {"t": {key: value for key, value in step.values.items() if value is not None}}
    importer = Importer(
        *(database, clock, ImportSource(rules, APP, at), f"{number:064}", lambda _: DEFAULT_PRIOR),
        ThrottleRule(target_s=30.0, least=1, most=2),
    )
    await importer.run(io.BytesIO(json_text(tree).encode()), "export.json", lambda _: None)


def _newest(steps: list[Step]) -> dict[str, int | None]:
    return {key: value for step in sorted(steps, key=lambda one: one.minute) for key, value in step.values.items()}


async def test_any_order_of_writes_and_imports_ends_in_the_newest(database: Database, clock: FakeClock) -> None:
    drawn: list[list[Step]] = []

    @settings(max_examples=40)
    @given(histories())
    def draw(history: list[Step]) -> None:
        drawn.append(history)

    draw()
    for number, history in enumerate(drawn):
        scope = f"s{number}"
        for place, step in enumerate(history):
            await _take(database, clock, scope, 100 * number + place, step)

        async with database.connection() as conn:
            rows = await conn.fetch("SELECT key, value::text AS value FROM changes WHERE scope = $1", scope)
        found = {row["key"]: None if row["value"] is None else int(row["value"]) for row in rows}
        assert found == _newest(history), history
