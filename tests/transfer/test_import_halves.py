"""A batch of which PostgreSQL refuses a value is written by halves, each with what did not fit in its places."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.postgres.driver_errors import StatementRejected
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.importing.batches import ImportSource
from syncbeat_server.transfer.importing.importer import Importer
from syncbeat_server.transfer.importing.report import ImportReport
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import Json, MisfitReason
from syncbeat_server.transfer.rtdb.shapes import json_text
from tests.support.build import APP
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.fake_clock import FakeClock
from tests.support.rtdb_exports import MAP
from tests.support.seed import value_of

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

_PROFILES: dict[str, Json] = {"a": 1, "b": "\0", "c": "no", "d": 1, "e": "\0", "f": 1}
_REFUSAL = """
CREATE FUNCTION refuse_no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE data_exception; END $$;
CREATE TRIGGER refuse_no BEFORE INSERT ON changes FOR EACH ROW WHEN (NEW.value = '"no"')
    EXECUTE FUNCTION refuse_no();
"""  # of a value whose fault no check of the import finds
_TREE: Json = {"profiles": _PROFILES}
_END_BEFORE_LAST_HALF = """
CREATE FUNCTION refuse_last_half() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'the end'; END $$;
CREATE TRIGGER refuse_last_half BEFORE UPDATE ON imports FOR EACH ROW WHEN (NEW.places = 6)
    EXECUTE FUNCTION refuse_last_half();
"""


async def run_import(database: Database, clock: FakeClock) -> ImportReport:
    source = ImportSource(parse_map(MAP), APP, datetime(2026, 1, 31, 12, tzinfo=UTC))
    importer = Importer(database, clock, source, "0" * 64, lambda _: DEFAULT_PRIOR)
    export = io.BytesIO(json_text(_TREE).encode())
    return await importer.run(export, "export.json", lambda _: None)


async def test_import_ended_between_halves_tells_each_place_once(
    database: Database, database_urls: DatabaseUrls, clock: FakeClock
) -> None:
    await run_sql(database_urls.admin_url, _REFUSAL)
    await run_sql(database_urls.admin_url, _END_BEFORE_LAST_HALF)
    with pytest.raises(StatementRejected):
        await run_import(database, clock)
    assert await value_of(database, "SELECT places FROM imports") == 3
    await run_sql(database_urls.admin_url, "DROP TRIGGER refuse_last_half ON imports")

    report = await run_import(database, clock)

    assert report.written == 3
    assert {reason: (one.count, one.example) for (_, reason), one in report.misfits.items()} == {
        MisfitReason.NUL: (2, "profiles/b"),
        MisfitReason.REFUSED_VALUE: (1, "profiles/c"),
    }
