"""CPU of GetHint with 1,000,000 devices and scopes against 1,000, each call read from the database.

The servers cache fewer views than there are devices that poll in turn, so that no call finds its view in memory: one
that does reads no table, however large.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import asyncpg

from bench import raw_load
from bench.figure import Better, Figure, Options, Round, measure_pairs, report_progress
from bench.processes import RunningProcess
from bench.stage import GET_HINT, call, measure_load, migrated_stores, our_server, user_token
from syncbeat.v1 import sync_service_pb2
from syncbeat_devtools.embedded import EmbeddedStores

_FEW, _MANY = 1_000, 1_000_000
_ASKING = 1_000
_CALLS_A_SECOND = 2_000
_REQUEST = sync_service_pb2.GetHintRequest(device_id="phone").SerializeToString()

# As the superuser and in replica mode, which skips triggers and references, so that it is fast.
_FILL = (
    "SET session_replication_role = replica",
    """INSERT INTO devices (app_id, user_id, device_id, platform, token_state, registered_at, updated_at)
       SELECT 'default', 'user-' || n, 'phone', 'ANDROID', 'NONE', now(), now() FROM generate_series(1, {count}) n""",
    """INSERT INTO scopes (app_id, scope, head, changed_at, created_at)
       SELECT 'default', 'scope-' || n, 7, now() - interval '1 day', now() - interval '2 days'
       FROM generate_series(1, {count}) n""",
    """INSERT INTO scope_members (app_id, user_id, scope, role, added_at)
       SELECT 'default', 'user-' || n, 'scope-' || n, 'WRITER', now() FROM generate_series(1, {count}) n""",
    *(f"ALTER TABLE {table} SET (autovacuum_enabled = false)" for table in ("devices", "scopes", "scope_members")),
    "VACUUM ANALYZE devices, scopes, scope_members",
    "CHECKPOINT",
)


@dataclass(frozen=True)
class _Side:
    """A server with a number of rows, and the devices that poll it: as many on both sides, spread over all rows."""

    server: RunningProcess
    database: int | None
    tokens: Sequence[str]

    def load(self, seconds: float) -> Round:
        """Return the CPU per call, of the server and the database."""
        calls = [(token, _REQUEST) for token in self.tokens] * max(1, round(seconds * _CALLS_A_SECOND / _ASKING))
        done = measure_load(
            self.server, self.database, lambda: raw_load.run(self.server.address, GET_HINT, calls[0], calls)
        )
        used = (done.server_cpu_us or 0.0) + (done.database_cpu_us or 0.0)
        return Round(used, done.server_cpu_us, done.database_cpu_us)


def measure(options: Options) -> Figure:
    """Measure microseconds of CPU per call, of the server and PostgreSQL together."""
    with ExitStack() as stack:
        few, many = (stack.enter_context(_side(count)) for count in (_FEW, _MANY))
        for side in (few, many):
            side.load(options.seconds)
        return measure_pairs(
            "hint_rows_cpu",
            "us of CPU",
            Better.LESS,
            options,
            lambda: many.load(options.seconds),
            lambda: few.load(options.seconds),
            baseline_is=f"the same with {_FEW:,} devices, scopes and memberships",
            rows=_MANY,
            asking=_ASKING,
            kept="no view: each call reads its own; the tokens and how their users stand",
        )


@contextmanager
def _side(count: int) -> Iterator[_Side]:
    with migrated_stores() as stores:
        report_progress(f"hint_rows_cpu: fill in {count:,} rows")
        asyncio.run(_fill(stores, count))
        step = count // _ASKING
        tokens = [user_token(f"user-{number}") for number in range(step, count + 1, step)]
        with our_server(stores, SYNCBEAT_VIEW_CACHE_SIZE="100") as server:
            answer = call(server.address, GET_HINT, _REQUEST, tokens[0])
            assert len(sync_service_pb2.GetHintResponse.FromString(answer).hint.heads) == 1
            yield _Side(server, stores.pids[0], tokens)


async def _fill(stores: EmbeddedStores, count: int) -> None:
    connection = await asyncpg.connect(stores.admin_url)
    try:
        for statement in _FILL:
            await connection.execute(statement.format(count=count))
    finally:
        await connection.close()
