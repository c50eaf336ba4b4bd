"""Wires the limits that calls are held against: their rates follow the apps file while a process runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.ratelimit.model import TierPolicy
from syncbeat_server.ratelimit.shared_limits import SharedLimits

if TYPE_CHECKING:
    from syncbeat_server.rpc.call_limits import CallLimits, TierOf

_CLOSE_S = 0.3


@asynccontextmanager
async def running_call_limits(
    process: Process, policies: Callable[[], Mapping[str, TierPolicy]], tier_of: TierOf
) -> AsyncIterator[CallLimits]:
    """Share the rates of the apps with other processes for the block; at its end tell what was used, and give back.

    `policies` returns those of all apps as they are now; it is asked again whenever the apps file changed.
    """
    from syncbeat_server.rpc.call_limits import CallLimits  # with gRPC, which only processes with RPCs load

    shared = SharedLimits(process.bus, process.clock, process.rules.limits)
    process.metrics.limits.watch(shared)
    limits = CallLimits(shared, tier_of, process.metrics.limits.refused)
    limits.adopt(policies())
    process.apps.on_change(lambda: limits.adopt(policies()))
    async with run_in_background([shared.run()]):
        try:
            yield limits
        finally:
            await process.shutdown.wait_for(shared.close(), _CLOSE_S)
