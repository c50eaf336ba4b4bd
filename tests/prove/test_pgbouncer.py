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

pytestmark = pytest.mark.prove

ROOT = Path(__file__).parents[2]

# What rests on a connection of its own to PostgreSQL. They are run through the pooler too, and have to fail: so this
# holds none too many, and a run that went past the pooler is found out.
NOT_POOLED = {
    "tests/push/test_app_isolation.py::test_pg_notify_wakes_listeners_and_reconnects": "LISTEN needs a session",
    "tests/storage/test_migrate.py::"
    "test_migrate_refuses_wrong_logins_with_the_fix": "migrations refuse a pooler before they look at the login",
    "tests/storage/test_connection_limit.py::"
    "test_connection_limit_with_one_idle_connection_uses_it": "the limit is met by the pooler",
    "tests/storage/test_connection_limit.py::"
    "test_connection_limit_with_none_open_is_an_outage": "the limit is met by the pooler",
    "tests/storage/test_connection_limit.py::"
    "test_connection_limit_backoff_does_not_hammer_the_server": "the limit is met by the pooler",
    "tests/storage/test_connection_limit.py::"
    "test_connection_limit_queue_skips_cancelled_callers": "the limit is met by the pooler",
    "tests/storage/test_database_recreated.py::"
    "test_database_dropped_and_restored_is_an_outage": "the pooler keeps the dropped database's sessions",
    "tests/storage/test_managed_postgres.py::"
    "test_row_security_off_for_the_login_is_explained[login]": "it connects by other logins' settings",
    "tests/storage/test_managed_postgres.py::"
    "test_row_security_off_for_the_login_is_explained[database]": "it connects by other logins' settings",
    "tests/storage/test_managed_postgres.py::"
    "test_row_security_off_for_the_login_is_explained[login in database]": "it connects by other logins' settings",
    "tests/storage/test_managed_postgres.py::"
    "test_row_security_off_for_the_login_is_explained[address]": "it connects by other logins' settings",
    "tests/storage/test_postgres_hosts.py::"
    "test_postgres_host_silent_does_not_delay_the_next": "it names hosts of its own",
    "tests/storage/test_postgres_pool.py::"
    "test_idle_session_timeout_is_no_outage": "the server ends the pooler's sessions",
    "tests/storage/test_stuck_sessions.py::"
    "test_stuck_session_of_the_service_is_terminated": "it looks at the process of its session",
    "tests/storage/test_prepared_statements.py::"
    "test_prepared_statements_are_kept_on_a_direct_connection": "behind a pooler none is kept",
    "tests/storage/test_prepared_statements.py::"
    "test_prepared_statement_whose_result_a_migration_changes_is_a_conflict_once": "behind a pooler none is kept",
    "tests/storage/test_postgres_pool.py::test_connection_error_is_not_chained_to_its_opener": (
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


@pytest.mark.timeout(3600)
def test_storage_and_rpc_tests_pass_through_pgbouncer(
    request: pytest.FixtureRequest, record: Callable[[str, dict[str, object]], None]
) -> None:
    require(request, "PgBouncer", reason_missing("pgbouncer"))
    apart = [f"--deselect={name}" for name in NOT_POOLED]
    pooled, printed = run_pooled(
        *("tests", "-m", "store or rpc", *apart, "--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")
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
