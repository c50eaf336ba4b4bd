"""Times of servers under test: long where a busy machine would decide what is seen, and no more than that."""

from __future__ import annotations

from dataclasses import replace

from syncbeat_server.app.process_rules import ProcessRules, SyncRules
from syncbeat_server.storage.postgres.time_limits import DatabaseTimings
from syncbeat_server.storage.redis.time_limits import RedisTimings
from syncbeat_server.sync.model import SweepRule

DEADLINE_S = 20.0

# A transaction that a test holds open stays so for as long as a busy machine needs to come to its end. That Redis is
# gone is told by its socket: a pause of this machine is not to be taken for that. Nor do intervals grow because the
# machine pauses and seems to bear too much.
PATIENT = ProcessRules(
    database=DatabaseTimings(longest_wait_s=DEADLINE_S, idle_in_transaction_ms=60_000, transaction_ms=60_000),
    redis=RedisTimings(call_s=DEADLINE_S),
    sync=SyncRules(load_window_s=10**9),
)
# They look for changes by themselves once an hour: what is known sooner, a wake-up told.
UNSWEPT = replace(PATIENT, sync=replace(PATIENT.sync, sweeps=SweepRule(every_s=3_600.0), view_max_staleness_s=3_600.0))
# They wait longer for the answers of others than a busy machine may need.
PATIENT_WITH_OTHERS = replace(PATIENT, redis=replace(PATIENT.redis, query_s=DEADLINE_S / 2))
