"""A device that keeps in sync by itself: polls when it is told to, streams when that is better, fetches when woken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from syncbeat.feeds import SyncBatch
from syncbeat.follower import Follower, OnChanges
from syncbeat.steady import SyncClock, SystemClock
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

    **Batches.** A cursor moves only when its batch was taken: when `on_changes` has returned, or when the loop asks for
    the next one. A batch that `on_changes` raised for is given again, within seconds, later within a minute. Nothing is
    missed and nothing is applied twice, also when the app is killed, if `batch.cursor` is kept in the transaction that
    applies the batch and given back as `cursors`.

    **When it asks.** At the start; then never before the last hint's `poll_interval` has passed, also not when the
    date is set or the device was suspended (one that slept past the moment asks within some 13 s of waking). While the
    server cannot be reached it goes on at that interval plus a delay drawn from 0 to a bound that doubles up to 5 min,
    and not before a moment that the server asked for; a hint that is no longer valid counts as 5 min at least.
    `foreground` and `woken` call at once. What else the device says of itself goes out at once too, and is answered by
    a new hint, but at most three times in a row and then every 10 s; what became different meanwhile is said together.
    A call that finds the server UNAVAILABLE is made up to four times by the client, within seconds, and counts as one.

    **Streams.** While hints prefer one and it is open, nothing is polled. When it breaks, polls go on by the last hint
    until it is there again.

    Its methods are for the event loop's thread. What cannot pass (a revoked token, a device that is not registered, the
    end of the session, a message above a limit of gRPC's) ends it, and is raised by `wait`, by the iteration, and at
    the end of the `async with` block.
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
            client: Whose device it is is told by its token. It is not closed here.
            device_id: The device; it must be registered.
            on_changes: Applies a batch. None: iterate instead.
            cursors: How far the device came before; a scope without a cursor is listed from its start.
            user_id: The user; for services.
            streams: False polls whatever the hints prefer.
            clock: For tests.
        """
        self._offers = _Offers()
        self._follower = Follower(
            client,
            device_id,
            user_id,
            cursors,
            on_changes or self._offers.offer,
            clock or SystemClock(),
            streams=streams,
        )
        self._iterated = on_changes is None
        self._task: asyncio.Task[None] | None = None

    @property
    def cursors(self) -> list[core_pb2.ScopeCursor]:
        """How far the device has come: what was taken, of every scope."""
        return list(self._follower.feeds.cursors.values())

    @property
    def hint(self) -> pb.Hint | None:
        """The last hint; None before the first."""
        return self._follower.hint

    @property
    def is_streaming(self) -> bool:
        """Whether a stream is open."""
        return self._follower.stream.is_open

    def foreground(self) -> None:
        """The app came to the screen: the server is told and asked at once."""
        self._follower.show()

    def background(self) -> None:
        """The app left the screen."""
        self._follower.activity.hide()
        self._follower.stir()

    def touched(self) -> None:
        """The user did something. Cheap: it goes with the next poll, unless the server was told of a minute without."""
        follower = self._follower
        follower.activity.touch(follower.now())
        follower.stir()

    def network(self, network: pb.Network.ValueType) -> None:
        """What the device is connected by now."""
        self._follower.activity.connect(network)
        self._follower.stir()

    def battery(self, *, low: bool) -> None:
        """Whether the battery is low now."""
        self._follower.activity.charge(low=low)
        self._follower.stir()

    def woken(self, payload: Mapping[str, str]) -> bool:
        """A push came, with these `data`. Whether it was one of ours that wakes; others are the app's to handle.

        The scope that it names is fetched now, unless the device is there already or about to be. Then the push is
        acknowledged, so that it is not sent again. Where it stands for wake-ups of other scopes too, which a push
        service may have dropped for it, the server is asked at once what is new.
        """
        place = _place(payload)
        if place is None:
            return False
        self._follower.wake(place, payload.get("ack_token", ""), others=bool(payload.get("other_scopes")))
        return True

    async def wait(self) -> None:
        """Return when it was closed; raises what ended it by itself."""
        task = self._started()
        await asyncio.wait({task})
        if not task.cancelled():
            await task

    async def close(self) -> None:
        """End it: the stream, the call that is under way, the batch that is being applied."""
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task})

    async def __aenter__(self) -> Self:
        if self._task is not None:
            raise RuntimeError("a SmartSync is used once")
        self._task = asyncio.ensure_future(self._follower.run())
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
        batch = await self._offers.take()
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
        self._offers.end()


class _Offers:
    """One batch at a time, from the task to who iterates. It counts as taken when the next one is asked for."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._offered: tuple[SyncBatch, asyncio.Future[None]] | None = None
        self._given: asyncio.Future[None] | None = None
        self._ended = False

    async def offer(self, batch: SyncBatch) -> None:
        """Return when the batch was taken."""
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._offered = batch, taken
        self._changed.set()
        await taken

    async def take(self) -> SyncBatch | None:
        """The next batch; None when there will be no more."""
        if self._given is not None and not self._given.done():
            self._given.set_result(None)
        self._given = None
        while self._offered is None and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        if self._ended or self._offered is None:
            return None
        batch, self._given = self._offered
        self._offered = None
        return batch

    def end(self) -> None:
        """There will be no more."""
        self._ended = True
        self._changed.set()


def _place(payload: Mapping[str, str]) -> core_pb2.ScopeCursor | None:
    """The cursor that a wake-up of ours names."""
    scope, epoch, sequence = payload.get("scope"), payload.get("epoch"), payload.get("sequence", "")
    if payload.get("syncbeat") != "sync" or not scope or epoch is None:
        return None
    if not sequence.isascii() or not sequence.isdecimal() or len(sequence) > _MAX_DIGITS:
        return None
    number = int(sequence)
    return core_pb2.ScopeCursor(scope=scope, epoch=epoch, sequence=number) if number <= _MAX_SEQUENCE else None
