"""Limits the streams that a user, and a device, has open on one process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from syncbeat_server.defaults import STREAMS_PER_DEVICE, STREAMS_PER_USER
from syncbeat_server.errors import RateLimited
from syncbeat_server.sync.model import DeviceKey

_RETRY_AFTER_S = 30.0  # within 80 s a connection that is dead has been noticed, and its streams are gone


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
        if len(open_devices) >= self.per_user:
            raise _limit_error("user", self.per_user)
        if device.device_id and sum(other == device for other in open_devices) >= self.per_device:
            raise _limit_error("device", self.per_device)


def _limit_error(owner: str, limit: int) -> RateLimited:
    message = f"a {owner} has at most {limit} streams open on a process: end one first"
    return RateLimited(
        message, retry_after_s=_RETRY_AFTER_S, limit=str(limit), remaining="0", reset=str(int(_RETRY_AFTER_S))
    )
