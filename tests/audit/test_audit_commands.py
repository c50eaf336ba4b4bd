"""`syncbeat-server audit list`, and the entries that other commands write."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable

import pytest

from syncbeat_server.audit.model import AuditAction
from syncbeat_server.cli.audit_log.operator import operator_name
from tests.support.app_rows import plant_app
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.operator_commands import run_command

pytestmark = pytest.mark.process

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(database_urls: DatabaseUrls, redis_url: str) -> Run:
    """Runs `syncbeat-server` beside the servers of a deployment."""
    settings = {"SYNCBEAT_DATABASE_URL": database_urls.app_url, "SYNCBEAT_REDIS_URL": redis_url}

    def command(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        given = {name: text for name, text in settings.items() if name not in without}
        return run_command(*arguments, settings=given)

    return command


async def test_audit_list_command_prints_and_filters(run: Run, database_urls: DatabaseUrls) -> None:
    insert = """INSERT INTO audit_entries (app_id, action, actor, address, subject, request_id, details)
                SELECT 'default', 'USER_DISABLED', 'service:b', '192.0.2.1', 'user:u' || n, 'r', '{"n":1}'
                FROM generate_series(1, 501) n"""
    await run_sql(database_urls.app_url, insert)
    lines = await asyncio.to_thread(run, "audit", "list", "--subject", "user:u7")
    assert lines.returncode == 0, lines.stderr
    assert lines.stdout.split(" ", 1)[1] == "default USER_DISABLED service:b 192.0.2.1 user:u7 n=1\n"
    all_of_them = await asyncio.to_thread(run, "audit", "list", "--json", "--limit", "1000", "--app", "default")
    told = [json.loads(line) for line in all_of_them.stdout.splitlines()]
    assert {one["subject"] for one in told} == {f"user:u{n}" for n in range(1, 502)}, "over the end of a page"
    assert told[0].keys() == {
        *("time", "app_id", "action", "actor", "address", "subject", "details", "request_id", "entry_id")
    }
    assert all_of_them.stderr == ""
    for limit in (50, 499, 500):
        some = await asyncio.to_thread(run, "audit", "list", "--limit", str(limit))
        assert len(some.stdout.splitlines()) == limit
        assert f"the newest {limit}; there are more" in some.stderr
    exactly = await asyncio.to_thread(run, "audit", "list", "--limit", "501")
    assert (len(exactly.stdout.splitlines()), exactly.stderr) == (501, "")
    none = await asyncio.to_thread(run, "audit", "list", "--since", "2999-01-01")
    assert (none.returncode, none.stdout) == (0, "")
    wrong = await asyncio.to_thread(run, "audit", "list", "--action", "nothing")
    assert (wrong.returncode, "one of SESSION_REVOKED" in wrong.stderr) == (1, True)


async def test_audit_list_command_needs_the_database_alone(run: Run) -> None:
    listed = await asyncio.to_thread(run, "audit", "list", without=("SYNCBEAT_REDIS_URL",))
    assert (listed.returncode, listed.stderr) == (0, "")
    refused = await asyncio.to_thread(run, "audit", "list", without=("SYNCBEAT_REDIS_URL", "SYNCBEAT_DATABASE_URL"))
    assert (refused.returncode, "SYNCBEAT_DATABASE_URL: name the database" in refused.stderr) == (1, True)


async def test_commands_that_erase_and_renew_name_their_operator(run: Run, database_urls: DatabaseUrls) -> None:
    await plant_app(database_urls, "gone", 2)
    for arguments in (("app", "erase", "gone"), ("new-epoch",)):
        refused = await asyncio.to_thread(run, *arguments)
        assert refused.returncode == 1, "without --confirm nothing is done"
    assert (await asyncio.to_thread(run, "audit", "list")).stdout == ""
    erased = await asyncio.to_thread(run, "app", "erase", "gone", "--confirm", "gone")
    assert erased.returncode == 0, erased.stderr
    await plant_app(database_urls, "shop", 1, "scopes")
    renewed = await asyncio.to_thread(run, "new-epoch", "--confirm", database_urls.name)
    assert renewed.returncode == 0, renewed.stderr
    listed = await asyncio.to_thread(run, "audit", "list", "--json")
    told = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [(one["action"], one["app_id"], one["subject"], one["actor"]) for one in told] == [
        (AuditAction.EPOCHS_RENEWED, "", "deployment", operator_name()),
        (AuditAction.APP_ERASED, "gone", "app:gone", operator_name()),
    ]
