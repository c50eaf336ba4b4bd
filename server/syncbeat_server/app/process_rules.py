"""Groups the times and bounds of a process that no setting changes, each declared by the unit that goes by it.

A process is served by the defaults. A test serves with others, so that it need not wait, and a busy machine does not
decide what it sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from syncbeat_server.app.app_configuration import LOOK_EVERY_S
from syncbeat_server.auth.accounts.account_status_cache import NEGATIVE_CACHE_S
from syncbeat_server.events.retry_worker import RetryWorkerRule
from syncbeat_server.ratelimit.lease import LeaseRule
from syncbeat_server.runtime.health_monitor import HealthRule
from syncbeat_server.status.call_window import WindowRule
from syncbeat_server.status.process_board import BoardRule
from syncbeat_server.storage.postgres.time_limits import DatabaseTimings
from syncbeat_server.storage.redis.time_limits import RedisTimings
from syncbeat_server.sync.feed.reader import ReadLimits
from syncbeat_server.sync.feed.tombstone_pruning import EVERY_S
from syncbeat_server.sync.hints.cursor_recorder import MAX_PENDING
from syncbeat_server.sync.hints.load_meter import LOAD_WINDOW_S
from syncbeat_server.sync.hints.view_reader import ViewLimits
from syncbeat_server.sync.hints.view_staleness import MAX_STALENESS_S
from syncbeat_server.sync.model import SweepRule
from syncbeat_server.sync.streams.stream_context import StreamRule

if TYPE_CHECKING:
    from syncbeat_server.rpc.connection_limits import ServerRule


@dataclass(frozen=True)
class SyncRules:
    """Times and bounds of the sync feature."""

    streams: StreamRule = field(default_factory=StreamRule)
    sweeps: SweepRule = field(default_factory=SweepRule)
    reads: ReadLimits = field(default_factory=ReadLimits)
    views: ViewLimits = field(default_factory=ViewLimits)
    view_max_staleness_s: float = MAX_STALENESS_S
    max_pending_cursors: int = MAX_PENDING
    load_window_s: int = LOAD_WINDOW_S
    prune_every_s: float = EVERY_S


@dataclass(frozen=True)
class StatusRules:
    """Times of the status feature."""

    window: WindowRule = field(default_factory=WindowRule)
    board: BoardRule = field(default_factory=BoardRule)


@dataclass(frozen=True)
class ProcessRules:
    """Times and bounds of a process. `server` None: the default, whose module loads gRPC."""

    database: DatabaseTimings = field(default_factory=DatabaseTimings)
    redis: RedisTimings = field(default_factory=RedisTimings)
    sync: SyncRules = field(default_factory=SyncRules)
    limits: LeaseRule = field(default_factory=LeaseRule)
    event_retries: RetryWorkerRule = field(default_factory=RetryWorkerRule)
    health: HealthRule = field(default_factory=HealthRule)
    status: StatusRules = field(default_factory=StatusRules)
    server: ServerRule | None = None
    negative_cache_s: float = NEGATIVE_CACHE_S
    files_every_s: float = LOOK_EVERY_S
    """Seconds between two looks at the apps file and the credentials it names."""


DEFAULT_RULES = ProcessRules()
