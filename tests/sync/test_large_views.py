"""Users of very many scopes cost the polls of others nothing: they are read apart, few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from syncbeat_server.storage.postgres.database import Connection, Database
from syncbeat_server.sync.hints import view_reader
from syncbeat_server.sync.model import DeviceKey
from syncbeat_server.sync.store import device_views
from syncbeat_server.sync.store.device_views import DeviceView
from tests.support.build import APP, PHONE, SyncFeature
from tests.support.fake_clock import FakeClock
from tests.support.seed import add_device, couple, value_of
from tests.support.view_reads import BOBS, heads, read_view

pytestmark = [pytest.mark.store, pytest.mark.usefixtures("database", "clock")]
SCOPES = 300


async def plant(database: Database, devices: Sequence[DeviceKey]) -> None:
    """Many scopes of ann's, and of each the cursor that each device has shown."""
    async with database.transaction() as conn:
        await conn.execute(
            """WITH made AS (INSERT INTO scopes (app_id, scope, head, created_at)
                             SELECT $1, 's' || n, 1, syncbeat_now() FROM generate_series(1, $2) n RETURNING scope),
                    joined AS (INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
                               SELECT $1, 'ann', scope, 'READER', syncbeat_now() FROM made)
               SELECT count(*) FROM made""",
            APP,
            SCOPES,
        )
        await conn.execute(
            """INSERT INTO device_cursors (app_id, user_id, device_id, scope, epoch, sequence, seen_at)
               SELECT $1, 'ann', d, scope, epoch, 1, syncbeat_now() FROM scopes, unnest($2::text[]) d
               WHERE app_id = $1 AND head = 1""",
            APP,
            [device.device_id for device in devices],
        )


@pytest.fixture
async def sync(database: Database, clock: FakeClock) -> SyncFeature:
    await couple(database)
    await plant(database, [PHONE])
    return SyncFeature(database, clock, cached_views=1_000)


class Statements:
    """Those that read views: of how many devices, and how many rows came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[list[DeviceKey], int]] = []
        self._real = device_views.read_device_views
        monkeypatch.setattr(device_views, "read_device_views", self._noted)

    async def _noted(self, conn: Connection, devices: Sequence[DeviceKey], most: int) -> list[DeviceView | None]:
        found = await self._real(conn, devices, most)
        rows = sum(len(view.scopes) + view.more_scopes for view in found if view is not None)
        self.told.append((list(devices), rows))
        return found


async def test_view_cache_reads_large_views_apart_and_few_at_once(
    sync: SyncFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = [PHONE._replace(device_id=f"phone-{n}") for n in range(20)]
    for phone in phones:
        await add_device(sync.database, "ann", phone.device_id)
    sync.listening = False  # each is read
    statements = Statements(monkeypatch)
    for round_ in range(2):
        statements.told.clear()
        found = await asyncio.gather(*(sync.view_reader.read(device) for device in (*phones, BOBS)))
        assert [len(view.scopes) for view in found if view is not None] == [SCOPES + 1] * 20 + [1]
        assert not any(view.more_scopes for view in found if view is not None)
        (others,) = [devices for devices, _ in statements.told if BOBS in devices]
        assert others == ([*phones, BOBS] if round_ == 0 else [BOBS]), "who has very many is remembered"
        large = [rows for devices, rows in statements.told if BOBS not in devices]
        assert max(large) <= view_reader._LARGE_BATCH * (SCOPES + 1)


async def test_view_cache_reads_a_shrunk_view_with_the_others(
    sync: SyncFeature, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync.listening = False
    await read_view(sync, PHONE)
    async with sync.database.connection() as conn:
        await conn.execute("DELETE FROM scope_members WHERE user_id = 'ann' AND scope <> 'couple'")
    statements = Statements(monkeypatch)
    for _ in range(2):
        assert await heads(sync, PHONE) == {"couple": 0}
    await asyncio.gather(sync.view_reader.read(PHONE), sync.view_reader.read(BOBS))
    assert statements.told[-1] == ([PHONE, BOBS], 2)


async def test_view_cache_looks_up_cursors_of_large_views_singly(sync: SyncFeature) -> None:
    """Without statistics of the table each scope's was looked for among all of the device's."""
    async with sync.database.transaction() as conn:
        (view,) = await device_views.read_device_views(conn, [PHONE])
        looked_at = await conn.fetchval(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'device_cursors'"
        )
    assert view is not None
    assert len(view.shown) == SCOPES
    assert looked_at == SCOPES
    assert await value_of(sync.database, "SELECT count(*) FROM device_cursors") == SCOPES
