"""The tests of storage and of RPCs, with PgBouncer in transaction mode before PostgreSQL."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from syncbeat_server.ops.process_group import launch_prefix
from tests.prove.tools import pgbouncer_program, reason_missing, require

ROOT = Path(__file__).parents[2]

# What rests on a connection of its own to PostgreSQL. They are run through the pooler too, and have to fail: so this
# holds none too many, and a run that went past the pooler is found out.
NOT_POOLED = {
    "tests/storage/test_apps_apart.py::"
    "test_a_notice_of_the_database_wakes_who_listens_and_again_after_it_was_away": "LISTEN needs a session",
    "tests/storage/test_migrate.py::"
    "test_wrong_logins_are_refused_with_the_fix": "migrations refuse a pooler before they look at the login",
    "tests/storage/test_postgres.py::test_what_befalls_a_connection_is_not_told_as_the_call_that_opened_it": (
        "it cuts PostgreSQL's connections, which are the pooler's"
    ),
}


def run_pooled(*arguments: str) -> tuple[Counter[str], str]:
    """Run these tests through the pooler: how many ended in which way, and the last lines that were printed."""
    done = subprocess.run(
        [
            *launch_prefix(signal.SIGINT),
            *(sys.executable, "-m", "pytest", "--quiet", f"--pgbouncer={pgbouncer_program()}"),
            *("-p", "no:cacheprovider", *arguments),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    *_, last = done.stdout.strip().splitlines()
    ways = {way: int(count) for count, way in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    return Counter(ways), done.stdout[-4_000:]


@pytest.mark.timeout(1200)
def test_storage_and_rpc_tests_pass_through_pgbouncer(
    request: pytest.FixtureRequest, record: Callable[[str, dict[str, object]], None]
) -> None:
    require(request, "PgBouncer", reason_missing("pgbouncer"))
    apart = [f"--deselect={name}" for name in NOT_POOLED]
    pooled, printed = run_pooled(
        "tests/storage", "tests/rpc", *apart, "--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder"
    )
    unpoolable, _ = run_pooled(*NOT_POOLED)
    version = subprocess.run(
        ["/usr/bin/env", f"LD_LIBRARY_PATH={pgbouncer_program().parent}", pgbouncer_program(), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    record(
        "pgbouncer",
        {
            "command": "make prove ARGS='-k pgbouncer'",
            "version": version.stdout.splitlines()[0],
            "tests_through_it": dict(pooled),
            "tests_that_need_a_session": NOT_POOLED,
        },
    )
    assert pooled.keys() == {"passed"}, printed
    assert pooled["passed"] > 1_000
    assert unpoolable == {"failed": len(NOT_POOLED)}
