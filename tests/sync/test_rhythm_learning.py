"""The histories that the nightly fit reads, where there are more scopes than it can."""

from __future__ import annotations

from datetime import timedelta

import pytest

from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.store import change_samples
from syncbeat_server.sync.store.change_samples import FitTurn
from tests.support.build import APP
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.store

DAY_S = 86_400.0


async def add_scopes(database: Database, clock: FakeClock, name: str, count: int, silent_s: float) -> None:
    """Scopes that changed last so long ago."""
    async with database.connection() as conn:
        await conn.execute(
            """INSERT INTO scopes (app_id, scope, created_at, changed_at)
               SELECT $1, $2 || n, $4::timestamptz - interval '6 days', $4 FROM generate_series(1, $3::int) n""",
            APP,
            name,
            count,
            clock.now() - timedelta(seconds=silent_s),
        )


async def test_prior_fit_sees_scopes_of_all_ages(database: Database, clock: FakeClock) -> None:
    """A fit that cannot read all scopes does not prefer those that have been silent for longest."""
    await add_scopes(database, clock, "silent-", 60, 5 * DAY_S)
    await add_scopes(database, clock, "busy-", 60, 60.0)
    now = clock.now().timestamp()
    async with database.connection() as conn:
        await change_samples.add_samples(conn, APP, [(f"busy-{n}", now - 3_600.0 - n) for n in range(1, 61)])
        turn = FitTurn(1.0, True, now - DAY_S, now, None)
        histories = await change_samples.read_histories(conn, APP, turn, 40)
        again = await change_samples.read_histories(conn, APP, turn, 40)
    assert len(histories) == 40
    assert histories == again
    assert 10 <= sum(len(history.changes) for history in histories) <= 30
