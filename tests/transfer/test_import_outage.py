"""An import that the database leaves alone for a minute says that what it did stays, and goes on from there."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from syncbeat_server.clock import SystemClock
from syncbeat_server.errors import DependencyDown
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.importing import importer
from syncbeat_server.transfer.importing.batches import ImportSource
from syncbeat_server.transfer.mapping.map_file import parse_map

pytestmark = pytest.mark.store

MAP = parse_map('version = 1\n[[value]]\npath = "a/{k}"\nscope = "s"\nkey = "{k}"\n')


class ImpatientClock(SystemClock):
    """Counts the seconds of sleeps and sleeps none of them."""

    slept_s = 0.0

    async def sleep(self, seconds: float) -> None:
        """Count a sleep."""
        self.slept_s += seconds


async def test_import_without_a_database_for_a_minute_says_what_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None:
        raise DependencyDown("the database does not answer")

    monkeypatch.setattr(importer, "write_items", nothing)
    clock = ImpatientClock()
    source = ImportSource(MAP, "default", datetime(2026, 11, 1, tzinfo=UTC))
    run = importer.Importer(database, clock, source, "0" * 64, lambda _: DEFAULT_PRIOR)
    with pytest.raises(DependencyDown, match="what was imported stays: run the same again"):
        await run.run(io.BytesIO(b'{"a": {"k": 1}}'), "export.json", lambda _: None)
    assert 45 <= clock.slept_s <= 75
