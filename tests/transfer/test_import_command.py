"""Runs `import-rtdb` as a process: killed and resumed, dry, and with faults of its operator."""

from __future__ import annotations

import random
from pathlib import Path

import asyncpg
import pytest

from syncbeat_devtools.embedded import EmbeddedStores
from syncbeat_server.cli.main import main
from tests.support.databases import DatabaseUrls
from tests.support.rtdb_exports import MAP, SOURCE_TIME, write_export
from tests.support.rtdb_imports import ImportCommand, arguments

pytestmark = [pytest.mark.process, pytest.mark.slow]

_OCTETS = 900_000


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, int]:
    """Return an export, its map, and the number of its values."""
    export, transfer_map = tmp_path / "export.json", tmp_path / "map.toml"
    transfer_map.write_text(MAP)
    return export, transfer_map, write_export(export, _OCTETS)


async def _fetch(urls: DatabaseUrls, sql: str) -> list[tuple[object, ...]]:
    conn = await asyncpg.connect(urls.admin_url)
    try:
        return [tuple(row.values()) for row in await conn.fetch(sql)]
    finally:
        await conn.close()


async def test_killed_import_goes_on_and_a_second_changes_nothing(
    stores: EmbeddedStores, database_urls: DatabaseUrls, files: tuple[Path, Path, int]
) -> None:
    export, transfer_map, values = files
    more = ("--source-time", SOURCE_TIME, "--batch-ms", "10")
    command = ImportCommand(stores, database_urls, arguments(export, transfer_map, *more))
    dice = random.Random(7)

    for kill_at in sorted(dice.sample(range(1, values // 2), 3)):
        killed = await command.run(kill_at)
        assert killed.status == -9, killed.err
    done = await command.run()
    feed = await _fetch(database_urls, "SELECT scope, key, sequence, value::text FROM changes ORDER BY 1, 2")
    again = await command.run()

    assert done.status == 3, done.err  # of one place that no rule matches
    assert f"imported into app 'default': {values} values" in done.out
    assert "goes on after" in done.err
    assert len(feed) == values
    heads = await _fetch(database_urls, "SELECT sum(head) FROM scopes")
    assert heads == [(values,)]  # no value was written twice
    assert "; 0 changed" in again.out, again.err
    assert f"{values} values unchanged" in again.out
    assert await _fetch(database_urls, "SELECT scope, key, sequence, value::text FROM changes ORDER BY 1, 2") == feed
    assert await _fetch(database_urls, "SELECT count(*) FROM deliveries") == [(0,)]


async def test_dry_run_writes_nothing_and_tells_what_does_not_fit(
    stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    export, transfer_map = tmp_path / "export.json", tmp_path / "map.toml"
    transfer_map.write_text(MAP)
    export.write_text('{"profiles": {"a": {"n": 1}, "b": {"n": "\\u0000"}}, "rooms": {"r": 1}, "chats": {"c": 5}}')

    dry = await ImportCommand(stores, database_urls, arguments(export, transfer_map, "--dry-run")).run()

    assert dry.status == 3, dry.err
    assert "1  profiles/{user}  a text has the character U+0000" in dry.out
    assert "(first: profiles/b)" in dry.out
    assert "would import 1 values, 0 members, 0 devices, 0 preferences; nothing was written" in dry.out
    assert await _fetch(database_urls, "SELECT count(*) FROM changes") == [(0,)]
    assert await _fetch(database_urls, "SELECT count(*) FROM imports") == [(0,)]
    done = await ImportCommand(
        stores, database_urls, arguments(export, transfer_map, "--source-time", SOURCE_TIME)
    ).run()
    assert (done.status, "places do not fit, as listed" in done.out) == (3, True), done.err


async def test_faults_of_the_operator_are_sentences(
    stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    export, transfer_map = tmp_path / "export.json", tmp_path / "map.toml"
    transfer_map.write_text(MAP)
    export.write_text("{}")

    async def said(*more: str) -> str:
        run = await ImportCommand(stores, database_urls, arguments(export, transfer_map, *more)).run()
        assert run.status == 1
        return run.err

    assert "--source-time: say when the export was begun" in await said()
    assert "--source-time: it is in the future" in await said("--source-time", "9999-01-01T00:00:00Z")
    assert "--app: 'other' is not configured" in await said("--source-time", SOURCE_TIME, "--app", "other")
    transfer_map.write_text("version = 1")
    assert "map.toml: the map has no rule" in await said("--source-time", SOURCE_TIME)


@pytest.mark.parametrize(("moment", "said"), [("yesterday", "want a time as"), ("2026-01-31T12:00:00", "an offset")])
def test_source_time_is_a_moment(moment: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["import-rtdb", "export.json", "--map", "map.toml", "--source-time", moment])

    assert said in capsys.readouterr().err


async def test_files_that_are_not_there_are_named(
    stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    transfer_map = tmp_path / "map.toml"
    missing = arguments(tmp_path / "none.json", transfer_map, "--source-time", SOURCE_TIME)

    without_map = await ImportCommand(stores, database_urls, missing).run()
    transfer_map.write_text(MAP)
    without_export = await ImportCommand(stores, database_urls, missing).run()

    assert "map.toml: No such file" in without_map.err
    assert "none.json: No such file" in without_export.err


async def test_import_of_values_only_leaves_members_devices_and_preferences_out(
    stores: EmbeddedStores, database_urls: DatabaseUrls, tmp_path: Path
) -> None:
    export, transfer_map = tmp_path / "export.json", tmp_path / "map.toml"
    transfer_map.write_text(MAP)
    export.write_text(
        '{"chats": {"c": {"title": "One", "members": {"ann": true, "bob": 7}}}, "tokens": {"ann": {"t": "ios"}}}'
    )
    given = arguments(export, transfer_map, "--source-time", SOURCE_TIME)

    only = await ImportCommand(stores, database_urls, (*given, "--values-only")).run()
    whole = await ImportCommand(stores, database_urls, given).run()

    assert only.status == 0, only.err
    assert "imported into app 'default': 1 values, 0 members, 0 devices, 0 preferences; 1 changed" in only.out
    assert "do not fit" not in only.out
    assert "0 values, 1 members, 1 devices, 0 preferences; 2 changed" in whole.out, whole.err
    assert "1 places do not fit" in whole.out
    assert whole.status == 3
