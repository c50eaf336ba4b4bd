"""Wires the limits that calls are held against: rates and quotas, which follow the apps file while a process runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from syncbeat_server.app.operations.status import limit_status
from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.app.ratelimit.tiers import TierPolicies
from syncbeat_server.ratelimit.quotas import QuotaCounters
from syncbeat_server.ratelimit.shared_limits import SharedLimits

if TYPE_CHECKING:
    from syncbeat_server.rpc.pipeline.call_limits import CallLimits

_CLOSE_S = 0.2


@dataclass(frozen=True)
class LimitFeature:
    """The limits of one process. `quotas` run as long as it serves, and must be flushed afterwards."""

    calls: CallLimits
    policies: TierPolicies
    quotas: QuotaCounters


@asynccontextmanager
async def running_call_limits(process: Process) -> AsyncIterator[LimitFeature]:
    """Share the rates of the apps with other processes for the block; at its end tell what was used, and give back."""
    from syncbeat_server.rpc.pipeline.call_limits import CallLimits  # with gRPC, which only processes with RPCs load

    policies, quotas = TierPolicies(process.apps), QuotaCounters(process.database, process.clock)
    shared = SharedLimits(process.bus, process.clock, process.rules.limits)
    process.metrics.limits.watch(shared)
    process.status.own.limits = limit_status(shared, process.metrics)
    calls = CallLimits(shared, quotas, process.clock, process.metrics.limits.refused)

    def adopt() -> None:
        calls.adopt(policies.all())

    adopt()
    process.apps.on_change(adopt)
    async with run_in_background([shared.run()]):
        try:
            yield LimitFeature(calls, policies, quotas)
        finally:
            await process.shutdown.wait_for(shared.close(), _CLOSE_S)
