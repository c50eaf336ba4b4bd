"""Wires the limits that calls are held against: their rates follow the apps file while a process runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from syncbeat_server.app.process import Process, run_in_background
from syncbeat_server.ratelimit.model import TierPolicy
from syncbeat_server.ratelimit.shared_limits import SharedLimits

if TYPE_CHECKING:
    from syncbeat_server.rpc.call_limits import CallLimits

_CLOSE_S = 0.3


@asynccontextmanager
async def running_call_limits(process: Process) -> AsyncIterator[CallLimits]:
    """Share the rates of the apps with other processes for the block; at its end tell what was used, and give back."""
    from syncbeat_server.rpc.call_limits import CallLimits  # with gRPC, which only processes with RPCs load

    shared = SharedLimits(process.bus, process.clock, process.rules.limits)
    process.metrics.limits.watch(shared)
    limits = CallLimits(shared, on_refused=process.metrics.limits.refused)

    def adopt() -> None:
        limits.adopt(_policies(process))

    adopt()
    process.apps.on_change(adopt)
    async with run_in_background([shared.run()]):
        try:
            yield limits
        finally:
            await process.shutdown.wait_for(shared.close(), _CLOSE_S)


def _policies(process: Process) -> Mapping[str, TierPolicy]:
    """Return the tiers of the apps that are served now."""
    return {name: policy for name, policy in process.rules.tier_policies.items() if name in process.apps.current}
