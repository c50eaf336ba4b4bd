"""Users who were deleted get nothing back by an export from before that."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime

import pytest

from syncbeat_server.events.user_lifecycle import delete_user
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.policy.scope_prior import DEFAULT_PRIOR
from syncbeat_server.transfer.importing.batches import ImportSource
from syncbeat_server.transfer.importing.importer import Importer
from syncbeat_server.transfer.importing.report import ImportReport
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import MisfitReason
from tests.support.build import APP, make_user_lifecycle
from tests.support.fake_clock import FakeClock
from tests.support.rtdb_exports import MAP
from tests.support.seed import rows_of, until_waiting

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]

BEGUN = datetime(2026, 1, 31, 12, tzinfo=UTC)
TREE = """{
  "chats": {"c1": {"title": "One", "members": {"ann": true, "bob": true}}, "c2": {"members": {"ann": true}}},
  "tokens": {"ann": {"tok-a": "ios"}, "bob": {"tok-b": "ios"}},
  "settings": {"ann": {"max": 3}, "bob": {"max": 4}}
}"""
LEFT_OUT = {
    ("chats/{chat}/members/{user}", MisfitReason.REFUSED_DELETED): 2,
    ("tokens/{user}/{token}", MisfitReason.REFUSED_DELETED): 1,
    ("settings/{user}", MisfitReason.REFUSED_DELETED): 1,
}


async def import_tree(database: Database, clock: FakeClock, import_id: str) -> ImportReport:
    source = ImportSource(parse_map(MAP), APP, BEGUN)
    importer = Importer(database, clock, source, import_id, lambda _: DEFAULT_PRIOR)
    return await importer.run(io.BytesIO(TREE.encode()), "export.json", lambda progress: None)


def left_out(report: ImportReport) -> dict[tuple[str, MisfitReason], int]:
    return {key: one.count for key, one in report.misfits.items()}


async def users_with_rows(database: Database) -> list[tuple[str, str]]:
    return await rows_of(
        database,
        """SELECT 'member', user_id FROM scope_members UNION SELECT 'device', user_id FROM devices
           UNION SELECT 'preferences', user_id FROM preferences ORDER BY 1, 2""",
    )


OF_BOB = [("device", "bob"), ("member", "bob"), ("preferences", "bob")]


async def test_import_leaves_out_users_deleted_since(database: Database, clock: FakeClock) -> None:
    first = await import_tree(database, clock, "0" * 64)
    assert (first.members, first.devices, first.preferences, first.misfits) == (3, 2, 2, {})
    await make_user_lifecycle(database).delete(APP, "ann")

    again = await import_tree(database, clock, "0" * 64)
    other = await import_tree(database, clock, "1" * 64)

    assert await users_with_rows(database) == OF_BOB
    assert (left_out(again), left_out(other)) == (LEFT_OUT, LEFT_OUT)
    assert (other.changed, other.unchanged, other.present) == (0, 1, 3)


async def test_import_waits_for_a_deletion_that_goes_on(database: Database, clock: FakeClock) -> None:
    await make_user_lifecycle(database).enable(APP, "ann")
    async with database.transaction() as conn:
        await delete_user(conn, APP, "ann")
        running = asyncio.create_task(import_tree(database, clock, "0" * 64))
        await until_waiting(database)

    assert left_out(await running) == LEFT_OUT
    assert await users_with_rows(database) == OF_BOB
