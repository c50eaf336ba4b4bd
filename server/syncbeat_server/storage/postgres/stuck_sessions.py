"""Ends sessions of processes that vanished in the middle of a statement, where PostgreSQL does not do so itself.

A driver that prepares each statement sends it in two parts. A process that is stopped between the two leaves a session
that PostgreSQL counts as active: neither `idle_in_transaction_session_timeout` nor `statement_timeout` ends it, only
`transaction_timeout` does, which came with version 17.
"""

from __future__ import annotations

import logging

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.storage.postgres.database import Connection, Database

_log = logging.getLogger(__name__)

_EVERY_S = 3.0
_STUCK_S = 6.0  # as long as a transaction may wait between two statements
_HAS_TRANSACTION_TIMEOUT = 170_000


async def end_stuck_sessions(conn: Connection, stuck_s: float) -> int:
    """End the service's sessions that waited `stuck_s` for their client inside a statement; return how many."""
    rows = await conn.fetch(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND usename = session_user AND application_name LIKE 'syncbeat %'
             AND pid <> pg_backend_pid() AND state = 'active' AND wait_event = 'ClientRead'
             AND state_change < clock_timestamp() - make_interval(secs => $1)""",
        stuck_s,
    )
    return len(rows)


async def watch_sessions(database: Database, clock: Clock) -> None:
    """Look for stuck sessions for ever; return at once if PostgreSQL ends them itself."""
    version = 0
    while True:
        try:
            async with database.connection() as conn:
                version = version or int(await conn.fetchval("SELECT current_setting('server_version_num')"))
                if version >= _HAS_TRANSACTION_TIMEOUT:
                    return
                ended = await end_stuck_sessions(conn, _STUCK_S)
            if ended:
                _log.warning("ended sessions of a process that is gone", extra={"count": ended})
        except SyncbeatError as error:
            _log.warning("cannot look for stuck sessions now", extra={"reason": error.reason})
        await clock.sleep(_EVERY_S)
