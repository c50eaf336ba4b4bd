"""Keeps a device in sync by itself: polls when hints say so, streams when that is better, fetches after a push."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from syncbeat.batch_handover import BatchHandover
from syncbeat.boottime_clock import BoottimeClock, SyncClock
from syncbeat.cursor_state import CursorState, SyncBatch
from syncbeat.scope_fetcher import OnChanges, ScopeFetcher, SyncedDevice
from syncbeat.sync_loop import SyncLoop
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

if TYPE_CHECKING:
    from syncbeat.client import SyncbeatClient

_MAX_SEQUENCE = 2**63 - 1
_MAX_DIGITS = 19

_log = logging.getLogger(__name__)


class SmartSync:
    """Keeps one device in sync. Batches go to `on_changes`, or to whoever iterates over it, one at a time.

        async with SmartSync(client, "phone-1", cursors=kept, on_changes=apply) as sync:
            await sync.wait()

    **Batches.** A cursor moves only when its batch was applied: when `on_changes` has returned, or when the iteration
    asks for the next one. If `on_changes` raises, it is given the batch again, within seconds, later within a minute.
    Nothing is missed and nothing is applied twice, also when the app is killed, if `batch.cursor` is stored in the
    transaction that applies the batch and given back as `cursors`.

    **Polls.** It polls at the start; then never before the last hint's `poll_interval` has passed, also not when the
    date is set or the device was suspended (a device that slept past the moment polls within some 13 s of waking).
    While the server cannot be reached it goes on at that interval plus a delay drawn from 0 to a bound that doubles up
    to 5 min, and not before the moment that the server asked for; a hint that is no longer valid counts as 5 min at
    least. `foreground` and `woken` call at once. Other changes of the device's activity are reported at once too, and
    answered by a new hint, but at most three times in a row and then every 10 s, several of them as one. A call that
    finds the server UNAVAILABLE is made up to four times by the client, within seconds, and counts as one.

    **Streams.** While hints prefer a stream and it is open, nothing is polled. When it breaks, polls go on by the last
    hint until it is open again.

    Its methods are for the event loop's thread. An error that cannot pass (a revoked token, a device that is not
    registered, the end of the session, a message above a limit of gRPC's) ends it, and is raised by `wait`, by the
    iteration, and at the end of the `async with` block.
    """

    def __init__(
        self,
        client: SyncbeatClient,
        device_id: str,
        *,
        on_changes: OnChanges | None = None,
        cursors: Iterable[core_pb2.ScopeCursor] = (),
        user_id: str = "",
        streams: bool = True,
        clock: SyncClock | None = None,
    ) -> None:
        """It starts with the `async with` block.

        Args:
            client: The client; its token names the user. It is not closed here.
            device_id: The device, which must be registered.
            on_changes: Applies a batch. None: iterate instead.
            cursors: The cursors stored before; a scope without a cursor is listed from its start.
            user_id: The user; for services.
            streams: False polls whatever the hints prefer.
            clock: The source of time; for tests.
        """
        if not device_id:
            raise ValueError("device_id: want that of a registered device")
        self._handover = BatchHandover()
        clock = clock or BoottimeClock()
        device, state = SyncedDevice(device_id, user_id, streams), CursorState(cursors)
        fetcher = ScopeFetcher(client, device, state, on_changes or self._handover.offer, clock)
        self._loop = SyncLoop(client, device, state, fetcher, clock)
        self._iterated = on_changes is None
        self._task: asyncio.Task[None] | None = None

    @property
    def cursors(self) -> list[core_pb2.ScopeCursor]:
        """The cursors of all scopes: up to them every change was applied."""
        return list(self._loop.state.cursors.values())

    @property
    def hint(self) -> pb.Hint | None:
        """The last hint; None before the first."""
        return self._loop.hint

    @property
    def is_streaming(self) -> bool:
        """True while a stream is open."""
        return self._loop.stream.is_open

    def foreground(self) -> None:
        """Note that the app came to the screen: the server is told at once, and answers a hint."""
        self._loop.enter_foreground()

    def background(self) -> None:
        """Note that the app left the screen."""
        self._loop.activity.enter_background()
        self._loop.wake()

    def touched(self) -> None:
        """Note that the user did something. Cheap: the next poll reports it, or a report if idleness was reported."""
        self._loop.activity.touch(self._loop.now())
        self._loop.wake()

    def network(self, network: pb.Network.ValueType) -> None:
        """Note the network that the device is connected by now."""
        self._loop.activity.set_network(network)
        self._loop.wake()

    def battery(self, *, low: bool) -> None:
        """Note if the battery is low now."""
        self._loop.activity.set_battery(low=low)
        self._loop.wake()

    def woken(self, payload: Mapping[str, str]) -> bool:
        """Handle a push with these `data`, and return True if it was a wake-up of ours; others are the app's to handle.

        The scope that it names is fetched now, unless the device is there already or about to be. Then the push is
        acknowledged, so that it is not sent again. If it stands for wake-ups of other scopes too, which a push service
        may have dropped for it, the server is polled at once.
        """
        place = _place(payload)
        if place is None:
            return False
        self._loop.receive_push(place, payload.get("ack_token", ""), others=bool(payload.get("other_scopes")))
        return True

    async def wait(self) -> None:
        """Wait until it was closed. Raises the error that ended it by itself."""
        task = self._started()
        await asyncio.wait({task})
        if not task.cancelled():
            await task

    async def close(self) -> None:
        """End it: the stream, the call in flight, the batch that is being applied."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("a SmartSync is used once")
        self._task = asyncio.ensure_future(self._loop.run())
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
        if error is None:
            await self.wait()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SyncBatch:
        if not self._iterated:
            raise RuntimeError("the batches go to on_changes")
        self._started()
        batch = await self._handover.take()
        if batch is None:
            await self.wait()
            raise StopAsyncIteration
        return batch

    def _started(self) -> asyncio.Task[None]:
        if self._task is None:
            raise RuntimeError("a SmartSync starts with `async with`")
        return self._task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("the sync has ended: %r", task.exception())
        self._handover.end()


def _place(payload: Mapping[str, str]) -> core_pb2.ScopeCursor | None:
    """Return the cursor that a wake-up of ours names; None for any other push."""
    scope, epoch, sequence = payload.get("scope"), payload.get("epoch"), payload.get("sequence", "")
    if payload.get("syncbeat") != "sync" or not scope or epoch is None:
        return None
    if not sequence.isascii() or not sequence.isdecimal() or len(sequence) > _MAX_DIGITS:
        return None
    number = int(sequence)
    return core_pb2.ScopeCursor(scope=scope, epoch=epoch, sequence=number) if number <= _MAX_SEQUENCE else None
