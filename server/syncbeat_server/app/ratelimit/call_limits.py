"""Wires the limits that calls are held against: rates and quotas follow the apps file while a process runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.app.ratelimit.tiers import TierPolicies
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ratelimit.quotas import QuotaCounters
from syncbeat_server.ratelimit.shared_limits import SharedLimits

if TYPE_CHECKING:
    from syncbeat_server.rpc.call_limits import CallLimits

_log = logging.getLogger(__name__)

# Each of the second and a half that is left after draining, of which cursors have 0.4.
_CLOSE_S, _FLUSH_S = 0.3, 0.3


@asynccontextmanager
async def running_call_limits(process: Process, policies: TierPolicies) -> AsyncIterator[CallLimits]:
    """Share the rates and quotas of the apps with other processes for the block.

    At its end tells what was used of rates, gives back what was not, and writes what was used of quotas.
    """
    from syncbeat_server.rpc.call_limits import CallLimits  # with gRPC, which only processes with RPCs load

    shared = SharedLimits(process.bus, process.clock, process.rules.limits)
    quotas = QuotaCounters(process.database, process.clock)
    process.metrics.limits.watch(shared)
    limits = CallLimits(shared, quotas, on_refused=process.metrics.limits.refused)

    def adopt() -> None:
        limits.adopt(policies.all())

    adopt()
    process.apps.on_change(adopt)
    async with run_in_background([shared.run(), quotas.run()]):
        try:
            yield limits
        finally:
            await process.shutdown.wait_for(shared.close(), _CLOSE_S)
            await _flush(process, quotas)


async def _flush(process: Process, quotas: QuotaCounters) -> None:
    try:
        if await process.shutdown.wait_for(quotas.flush(), _FLUSH_S):
            return
    except SyncbeatError as error:
        _log.warning("quota counts not written", extra={"reason": error.reason})
    else:
        _log.warning("quota counts not written in time")
