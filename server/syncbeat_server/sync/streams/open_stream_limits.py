"""Limits the streams that a user, and a device, has open on one process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from syncbeat_server.defaults import STREAMS_PER_DEVICE, STREAMS_PER_USER
from syncbeat_server.ratelimit.catalog import STREAMS_OF_DEVICE, STREAMS_OF_USER
from syncbeat_server.ratelimit.policy.decision import Bound, decide, refusal
from syncbeat_server.sync.model import DeviceKey


@dataclass(frozen=True)
class OpenStreamLimits:
    """Numbers of streams that may be open at once. A service's own are not counted."""

    per_user: int = STREAMS_PER_USER
    per_device: int = STREAMS_PER_DEVICE

    def check(self, device: DeviceKey, open_devices: Collection[DeviceKey]) -> None:
        """Return if a device may open a stream beside those that its user has open.

        Raises:
            RateLimited: its user, or the device, has as many streams open as allowed.
        """
        if not device.user_id:
            return
        _check("user", replace(STREAMS_OF_USER.bound, capacity=self.per_user), len(open_devices))
        if device.device_id:
            own = sum(other == device for other in open_devices)
            _check("device", replace(STREAMS_OF_DEVICE.bound, capacity=self.per_device), own)


def _check(owner: str, bound: Bound, used: int) -> None:
    decision = decide(bound, used)
    if not decision.allowed:
        raise refusal(f"a {owner} has at most {decision.limit} streams open on a process: end one first", decision)
