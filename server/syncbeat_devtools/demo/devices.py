"""Observers of a demo: a device with an open stream, and a client of the fake FCM's control endpoint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from syncbeat import SyncbeatClient
from syncbeat.v1 import sync_service_pb2

_WAIT_S = 15.0
_POLL_S = 0.02


async def eventually(condition: Callable[[], Awaitable[bool]], wait_s: float = _WAIT_S) -> bool:
    """Wait until `condition()` is true. Returns False if it is not in time."""
    deadline = time.monotonic() + wait_s
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


class StreamingDevice:
    """A device with an open stream, which records every change it receives and the time of arrival."""

    def __init__(self, client: SyncbeatClient, device_id: str) -> None:
        self.changes: list[sync_service_pb2.Change] = []
        self.came_at: list[float] = []
        self.checkpoints = 0
        self._task = asyncio.ensure_future(self._run(client, device_id))

    async def _run(self, client: SyncbeatClient, device_id: str) -> None:
        async for event in client.watch(device_id):
            if isinstance(event, sync_service_pb2.Change):
                self.changes.append(event)
                self.came_at.append(time.monotonic())
            elif isinstance(event, sync_service_pb2.Checkpoint):
                self.checkpoints += 1

    @property
    def sequences(self) -> list[int]:
        """Return the sequences it received, in order."""
        return [change.sequence for change in self.changes]

    async def wait_for(self, sequence: int) -> bool:
        """Wait for a change. Returns False if it does not come in time."""

        async def came() -> bool:
            return sequence in self.sequences

        return await eventually(came)

    async def wait_open(self) -> bool:
        """Wait until the stream is open. Returns False if it is not in time."""

        async def opened() -> bool:
            return self.checkpoints > 0

        return await eventually(opened)

    async def ended(self) -> Any:
        """Wait for the end of the stream. Returns its error; None if it goes on."""
        _, pending = await asyncio.wait([self._task], timeout=_WAIT_S)
        return None if pending else self._task.exception()

    async def close(self) -> None:
        """End the stream."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


class FakeFcmClient:
    """Reads and scripts the fake FCM over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = f"{base_url}/control"

    async def deliveries(self, token: str) -> list[dict[str, Any]]:
        """Return the messages accepted for a registration token, oldest first."""
        async with self._session.get(f"{self._url}/deliveries", params={"token": token}) as answer:
            found: list[dict[str, Any]] = (await answer.json())["deliveries"]
            return found

    async def all_deliveries(self) -> list[dict[str, Any]]:
        """Return every message that is kept, oldest first."""
        found: list[dict[str, Any]] = []
        while True:
            params = {"after": str(found[-1]["sequence"] if found else 0)}
            async with self._session.get(f"{self._url}/deliveries", params=params) as answer:
                page: list[dict[str, Any]] = (await answer.json())["deliveries"]
            if not page:
                return found
            found += page

    async def device(self, token: str) -> dict[str, Any]:
        """Return the notifications and data messages that a device would have shown."""
        async with self._session.get(f"{self._url}/devices/{token}") as answer:
            shown: dict[str, Any] = await answer.json()
            return shown

    async def stats(self) -> dict[str, Any]:
        """Return the counters."""
        async with self._session.get(f"{self._url}/stats") as answer:
            counters: dict[str, Any] = await answer.json()
            return counters

    async def script(
        self, token: str, kind: str, *, times: int | None = 1, share: float = 1.0, seed: int = 0, delay_ms: int = 0
    ) -> None:
        """Apply a fault to the next sends for a token (`*`: any), or to a share of them. `times=None`: for ever."""
        fault = {"token": token, "kind": kind, "times": times, "share": share, "seed": seed, "delay_ms": delay_ms}
        async with self._session.post(f"{self._url}/faults", json=fault) as answer:
            answer.raise_for_status()

    async def set_latency(self, latency_ms: int) -> None:
        """Delay every response of FCM by so many milliseconds."""
        async with self._session.post(f"{self._url}/latency", json={"latency_ms": latency_ms}) as answer:
            answer.raise_for_status()


def cursor_of(delivery: dict[str, Any]) -> int:
    """Return the sequence that a wake-up carries."""
    return int(delivery["message"]["data"]["sequence"])
