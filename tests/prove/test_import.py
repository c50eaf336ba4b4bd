"""A large export is imported in little memory, killed five times and resumed; a second import changes nothing."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from tests.support.databases import DatabaseUrls
from tests.support.rtdb_exports import MAP, SOURCE_TIME, write_export
from tests.support.rtdb_imports import ImportCommand, arguments, cpu_of

pytestmark = pytest.mark.prove

IMPORT_MB = int(os.environ.get("IMPORT_MB", "1024"))
KILLS = 5
MOST_RESIDENT = 200 << 20


@pytest.mark.timeout(14_400)
async def test_large_import_is_small_resumable_and_idempotent(
    stores: EmbeddedStores,
    database_urls: DatabaseUrls,
    tmp_path: Path,
    record: Callable[[str, dict[str, object]], None],
) -> None:
    export, transfer_map = tmp_path / "export.json", tmp_path / "map.toml"
    transfer_map.write_text(MAP)
    values = write_export(export, IMPORT_MB << 20)
    command = ImportCommand(stores, database_urls, arguments(export, transfer_map, "--source-time", SOURCE_TIME))
    dice = random.Random()
    conn = await asyncpg.connect(database_urls.admin_url)
    try:
        # In the first half, so that the last run is long enough to be timed.
        kill_at = sorted(dice.sample(range(1, values // 2), KILLS))
        killed = [await command.run(place) for place in kill_at]
        before = int(await conn.fetchval("SELECT count(*) FROM changes"))
        last = await command.run()
        digest = await conn.fetchval(_DIGEST)
        again = await command.run()
        figures: dict[str, object] = {
            "command": f'IMPORT_MB={IMPORT_MB} make prove ARGS="-k large_import"',
            "export_mib": round(export.stat().st_size / (1 << 20), 1),
            "values": values,
            "killed_at_place": kill_at,
            "statuses": [run.status for run in (*killed, last, again)],
            "peak_resident_mib": round(max(run.peak_octets for run in (*killed, last, again)) / (1 << 20), 1),
            "values_per_second": round((values - before) / last.seconds),
            "unchanged_values_per_second": round(values / again.seconds),
            # On a busy machine the seconds of CPU tell more.
            "cpu_us_per_value": _us(last.cpu_s, values - before),
            "database_cpu_us_per_value": _us(last.database_cpu_s, values - before),
            **await _copy_figures(conn, values),
            "second_import": again.out.splitlines()[-2],
        }
        assert figures["statuses"] == [-9] * KILLS + [3, 3], (figures, last.err, again.err)
        assert await conn.fetchval("SELECT count(*) FROM changes") == values, figures
        assert await conn.fetchval("SELECT sum(head) FROM scopes") == values, figures  # none was written twice
        assert "; 0 changed" in again.out, figures
        assert await conn.fetchval(_DIGEST) == digest, figures
        assert max(run.peak_octets for run in (*killed, last, again)) < MOST_RESIDENT, figures
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 0, figures
    finally:
        await conn.close()
    record("import", figures)


_DIGEST = "SELECT sum(hashtextextended(scope || ' ' || key || ' ' || sequence || value::text, 0)) FROM changes"


def _us(seconds: float, count: int) -> float:
    return round(1e6 * seconds / count, 1)


async def _copy_figures(conn: asyncpg.Connection, values: int) -> dict[str, object]:
    """Return the rate of a bare COPY of the same rows: into a table without indexes, and into one like `changes`."""
    columns = "app_id, scope, key, value, deleted, sequence, changed_at, source_time"
    rates: dict[str, object] = {}
    with tempfile.TemporaryFile() as rows:
        await conn.copy_from_query(f"SELECT {columns} FROM changes", output=rows, timeout=3_600)
        bare = f"CREATE TABLE copied AS SELECT {columns} FROM changes WITH NO DATA"
        for name, create in (("bare", bare), ("indexed", "CREATE TABLE copied (LIKE changes INCLUDING ALL)")):
            await conn.execute(create)
            rows.seek(0)
            started, cpu_s = time.monotonic(), cpu_of(conn.get_server_pid())
            await conn.copy_to_table("copied", source=rows, columns=columns.split(", "), timeout=3_600)
            rates[f"copy_{name}_rows_per_second"] = round(values / (time.monotonic() - started))
            rates[f"copy_{name}_database_cpu_us_per_row"] = _us(cpu_of(conn.get_server_pid()) - cpu_s, values)
            await conn.execute("DROP TABLE copied")
    return rates
