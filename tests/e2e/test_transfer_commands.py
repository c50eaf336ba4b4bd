"""`export`, `verify`, `reconcile` and `user` as an operator runs them beside a server."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from syncbeat_server.auth.model import Identity, LinkedBy
from syncbeat_server.auth.store import identities
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.transfer.mapping.map_file import parse_map
from tests.support import planted_exports
from tests.support.app_rows import plant_app
from tests.support.databases import DatabaseUrls
from tests.support.operator_commands import run_command
from tests.support.transfers import store_export

pytestmark = pytest.mark.process

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MAP = """
version = 1
[[value]]
path = "chats/{chat}/{message}"
scope = "chat:{chat}"
key = "{message}"
"""
TREE = '{"chats": {"a": {"m1": {"text": "hé", "n": 1.50}, "m2": [1, 2]}, "b": {"m1": true}}}'
IMPORTED = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def run(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> Run:
    """Runs `syncbeat-server` with the settings of a deployment, in a folder with a map and an export."""
    (tmp_path / "map.toml").write_text(MAP, encoding="utf-8")
    (tmp_path / "export.json").write_text(TREE, encoding="utf-8")
    stores = {"SYNCBEAT_DATABASE_URL": database_urls.app_url, "SYNCBEAT_REDIS_URL": redis_url}

    def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, settings={**stores, **settings}, folder=tmp_path)

    return command


async def test_verify_and_reconcile_commands(run: Run, database: Database, tmp_path: Path) -> None:
    await store_export(database, TREE, parse_map(MAP), IMPORTED)
    equal = await asyncio.to_thread(run, "verify", "export.json", "--map", "map.toml")
    assert equal.returncode == 0, equal.stderr
    assert equal.stdout.startswith("value: 3 here, 3 in the export; 0 differ, 0 newer here, checksum ")

    changed = '{"chats": {"a": {"m1": {"text": "hé", "n": 1.25}}, "b": {"m1": true, "m2": "new"}}, "other": {"x": 1}}'
    (tmp_path / "later.json").write_text(changed, encoding="utf-8")
    told = await asyncio.to_thread(run, "verify", "later.json", "--map", "map.toml")
    assert told.returncode == 1, told.stderr
    assert told.stdout.splitlines()[:5] == [
        "differs: chats/a/m1 at n (value 'm1' of 'chat:a')",
        "missing in the export: chats/a/m2 (value 'm2' of 'chat:a')",
        "missing here: chats/b/m2 (value 'm2' of 'chat:b')",
        "value of 'chat:a': 2 here, 1 in the export, 2 differ",
        "value of 'chat:b': 1 here, 2 in the export, 1 differ",
    ]
    assert "not compared: other: no rule of the map matches: 1" in told.stdout
    as_json = await asyncio.to_thread(run, "verify", "later.json", "--map", "map.toml", "--json", "--limit", "1")
    report = json.loads(as_json.stdout)
    assert (report["equal"], report["kinds"]["value"]["differences"], report["differing_scopes"]) == (False, 3, 2)
    assert [(one["path"], one["at"]) for one in report["differences"]] == [(["chats", "a", "m1"], [["n"]])]

    options = ("later.json", "--map", "map.toml", "--source-time", "2026-11-02T00:00:00Z")
    planned = await asyncio.to_thread(run, "reconcile", *options)
    assert (planned.returncode, "2 values to write and 1 to delete" in planned.stderr) == (1, True), planned.stderr
    assert "nothing was done; to do it: the same with --yes --delete 1" in planned.stderr
    unbounded = await asyncio.to_thread(run, "reconcile", *options, "--yes")
    assert (unbounded.returncode, "nothing was done: 1 to delete" in unbounded.stderr) == (1, True), unbounded
    done = await asyncio.to_thread(run, "reconcile", *options, "--yes", "--delete", "1")
    assert (done.returncode, "3 written, 0 left" in done.stderr) == (0, True), done.stderr
    assert (await asyncio.to_thread(run, "verify", *options)).returncode == 0

    (tmp_path / "later.json").write_text("null", encoding="utf-8")
    empty = await asyncio.to_thread(run, "reconcile", *options, "--yes", "--delete", "3")
    assert (empty.returncode, "3 values of chats/{chat}/{message} left" in empty.stderr) == (1, True), empty


async def test_verify_tells_that_most_is_newer_here(run: Run, database: Database, tmp_path: Path) -> None:
    await store_export(database, TREE, parse_map(MAP), IMPORTED)
    (tmp_path / "export.json").write_text('{"chats": {"a": {"m1": 1, "m2": 2}, "b": {"m1": true}}}', encoding="utf-8")
    told = "value: most of it is newer here, and was not judged"
    for at, count, status, is_told in (("2026-10-01", 2, 0, True), ("2026-11-02", 0, 1, False)):
        options = ("export.json", "--map", "map.toml", "--source-time", f"{at}T00:00:00Z")
        done = await asyncio.to_thread(run, "verify", *options)
        assert f"{count} newer here" in done.stdout, done.stderr
        assert (done.returncode, told in done.stdout) == (status, is_told), done.stdout
        as_json = await asyncio.to_thread(run, "verify", *options, "--json")
        assert json.loads(as_json.stdout)["mostly_newer_here"] == (["value"] if is_told else [])


async def test_verify_tells_members_of_another_role(run: Run, database: Database, tmp_path: Path) -> None:
    members = '[[member]]\npath = "members/{chat}/{user}"\nscope = "chat:{chat}"\nuser = "{user}"\n'
    tree = '{"members": {"a": {"ann": true, "bob": true}}}'
    (tmp_path / "map.toml").write_text(f"{MAP}{members}role = 'READER'\n", encoding="utf-8")
    (tmp_path / "export.json").write_text(tree, encoding="utf-8")
    await store_export(database, tree, parse_map(f"{MAP}{members}"), IMPORTED)
    told = await asyncio.to_thread(run, "verify", "export.json", "--map", "map.toml")
    assert told.returncode == 1, told.stderr
    assert told.stdout.startswith("differs: members/a/ann in its role (member 'ann' of 'chat:a')\n"), told.stdout
    assert "missing" not in told.stdout


@pytest.mark.parametrize("command", ["verify", "reconcile", "export", "import-rtdb"])
def test_transfer_commands_ask_which_of_several_apps(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "apps.toml").write_text('[apps.shop]\njwt_issuer = "https://shop.example"\n')
    of_tree = () if command == "export" else ("export.json", "--source-time", "2026-11-02T00:00:00Z")
    asked = run(command, *of_tree, "--map", "map.toml", SYNCBEAT_APPS_FILE="apps.toml")
    assert asked.returncode == (2 if command in ("verify", "reconcile") else 1), asked.stderr
    assert "--app: name one of default, shop" in asked.stderr


def test_user_erase_refuses_an_id_of_which_nothing_is_stored(run: Run) -> None:
    for confirm in ((), ("--confirm", "nobody")):
        refused = run("user", "erase", "nobody", *confirm)
        assert (refused.returncode, refused.stdout) == (2, ""), refused
        assert "nothing is stored of a user 'nobody' of app 'default'" in refused.stderr


@pytest.mark.parametrize("command", [("user", "export", "nobody"), ("export", "--user", "nobody")])
def test_export_of_a_user_refuses_an_unknown_id(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    refused = run(*command, "-o", "user.json")
    assert (refused.returncode, refused.stdout) == (2, ""), refused
    assert "nothing is stored of a user 'nobody' of app 'default'" in refused.stderr
    assert not list(tmp_path.glob("user.json*"))


async def test_export_of_a_linked_subject_names_the_user(run: Run, database: Database) -> None:
    async with database.transaction() as conn:
        linked = Identity("default", "https://new.example", "em-30")
        assert await identities.insert_identity(conn, linked, "ann", LinkedBy.LINK_TOKEN)
    refused = await asyncio.to_thread(run, "user", "export", "em-30")
    assert (refused.returncode, refused.stdout) == (1, ""), refused
    assert "'ann'" in refused.stderr


@pytest.mark.parametrize("command", ["import-rtdb", "reconcile"])
async def test_writing_commands_say_at_once_that_the_database_is_read_only(
    run: Run, database_urls: DatabaseUrls, command: str
) -> None:
    url = database_urls.app_url
    read_only = f"{url}{'&' if '?' in url else '?'}default_transaction_read_only=on"
    options = ("--yes",) if command == "reconcile" else ()
    of_export = ("export.json", "--map", "map.toml", "--source-time", "2026-11-02T00:00:00Z", *options)
    refused = await asyncio.to_thread(run, command, *of_export, SYNCBEAT_DATABASE_URL=read_only)
    assert refused.returncode in (1, 2), refused
    assert "the database takes no writes (default_transaction_read_only is on)" in refused.stderr


async def test_transfer_commands_refuse_files_that_they_cannot_use(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("version = 9", encoding="utf-8")
    for arguments, status, reason in (
        (("verify", "absent.json", "--map", "map.toml"), 2, "absent.json: No such file"),
        (("verify", "export.json", "--map", "bad.toml"), 2, "version = 9"),
        (("verify", "export.json", "--map", "map.toml", "--app", "none"), 2, "'none' is not configured"),
        (("export", "--output", "no/where.json"), 1, "--output: no/where.json"),
        (("user", "erase", "ann", "--confirm", "bob"), 1, "nothing was done"),
    ):
        refused = await asyncio.to_thread(run, *arguments)
        assert (refused.returncode, reason in refused.stderr) == (status, True), refused
    unsure = await asyncio.to_thread(run, "reconcile", "export.json", "--map", "map.toml")
    assert (unsure.returncode, "--source-time" in unsure.stderr) == (2, True)


@pytest.mark.parametrize("command", ["verify", "reconcile"])
def test_comparisons_refuse_times_that_no_export_was_begun_at(run: Run, command: str) -> None:
    compare = (command, "export.json", "--map", "map.toml", "--source-time")
    without_zone = run(*compare, "2026-11-02T00:00:00")
    assert (without_zone.returncode, "want an offset, such as Z" in without_zone.stderr) == (2, True), without_zone
    to_come = run(*compare, "2999-01-01T00:00:00Z")
    assert (to_come.returncode, "--source-time: it is in the future" in to_come.stderr) == (2, True), to_come


async def test_export_command_writes_trees_and_documents(run: Run, database: Database, tmp_path: Path) -> None:
    await store_export(database, TREE, parse_map(MAP), IMPORTED)
    tree = await asyncio.to_thread(run, "export", "--map", "map.toml")
    assert tree.returncode == 0, tree.stderr
    assert json.loads(tree.stdout) == json.loads(TREE)
    assert "3 entries; 0 are outside of the map" in tree.stderr

    plain = await asyncio.to_thread(run, "export", "--output", "app.json")
    assert plain.returncode == 0, plain.stderr
    file = tmp_path / "app.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    document = json.loads(file.read_text(encoding="utf-8"))
    assert (document["format"], document["app_id"]) == ("syncbeat-app-1", "default")
    value = document["scopes"]["chat:a"]["values"]["m1"]
    assert value["value"] == {"text": "hé", "n": 1.5}
    assert (value["sequence"], value["source_time"]) == (1, "2026-11-01T00:00:00+00:00")
    assert '"n": 1.50' in file.read_text(encoding="utf-8")
    assert not (tmp_path / "app.json.partial").exists()

    one = await asyncio.to_thread(run, "export", "--scope", "chat:b")
    assert json.loads(one.stdout)["scopes"].keys() == {"chat:b"}


async def test_user_commands_export_and_erase(run: Run, database_urls: DatabaseUrls) -> None:
    await plant_app(database_urls, "default", 2)
    exported = await asyncio.to_thread(run, "user", "export", "u1", "--values")
    assert exported.returncode == 0, exported.stderr
    document = json.loads(exported.stdout)
    assert len(document["tables"]["devices"]) == 1
    assert document["scopes"].keys() == {"s1"}

    planned = await asyncio.to_thread(run, "user", "erase", "u1")
    assert (planned.returncode, "devices 1" in planned.stdout) == (1, True), planned
    assert "to do it: syncbeat-server user erase u1 --app default --confirm u1" in planned.stderr
    unreachable = "redis://127.0.0.1:1/0"
    done = await asyncio.to_thread(run, "user", "erase", "u1", "--confirm", "u1", SYNCBEAT_REDIS_URL=unreachable)
    assert done.returncode == 0, done.stderr
    assert "devices: 1 rows deleted" in done.stdout
    assert "users: 1 rows stay: the row says only that the user is deleted" in done.stdout
    assert "audit_entries: 1 rows stay: the audit log keeps who did what" in done.stdout
    assert "Redis does not answer" in done.stdout
    left = json.loads((await asyncio.to_thread(run, "user", "export", "u1")).stdout)["tables"]
    assert left["devices"] == left["scope_members"] == left["sessions"] == []
    assert left["users"][0]["deleted_at"]
    (entry,) = left["audit_entries"]
    assert (entry["action"], entry["actor"]) == ("USER_DELETED", "operator")


async def test_verify_command_finds_one_planted_difference_among_many(
    run: Run, database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    values, planted = 20_000, 13_331
    planted_exports.write_export(tmp_path / "many.json", values)
    (tmp_path / "many.toml").write_text(planted_exports.MAP, encoding="utf-8")
    await planted_exports.plant(database_urls, values)
    await planted_exports.damage(database_urls, planted)
    options = ("many.json", "--map", "many.toml", "--source-time", "2026-11-02T00:00:00Z", "--yes")
    done = await planted_exports.run(database_urls, redis_url, tmp_path, "reconcile", *options)
    assert (done.status, "1 values to write and 0 to delete" in done.errors) == (0, True), done
    assert f"differs: chats/c133/m{planted} at x (" in done.output
    assert f"value: {values} here, {values} in the export; 1 differ" in done.output
    assert await planted_exports.untrue(database_urls) == ([], [f"m{planted}"])
