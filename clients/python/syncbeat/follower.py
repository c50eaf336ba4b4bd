"""The work behind a `SmartSync`: one task that asks when it is told to, lists what is behind and hands it over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration

from syncbeat.activity import ActivityReports
from syncbeat.errors import MAX_EXPIRIES, explain
from syncbeat.feeds import MOST_NAMED, Feeds, SyncBatch, Want
from syncbeat.pace import Backoff, Pace
from syncbeat.session import SignedOut
from syncbeat.steady import Elapsed, SyncClock
from syncbeat.stream_slot import StreamSlot
from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.watch import WatchEvent

if TYPE_CHECKING:
    from syncbeat.client import SyncbeatClient

OnChanges = Callable[[SyncBatch], Awaitable[None]]
"""Applies a batch. When it raises, it is given the same batch again, later."""

_LOOK_EVERY_S = 10.0  # timers stand still while a device sleeps, its clock does not
_GAP_S = 10.0  # so much later than it should be: it slept
_WAKE_SPREAD_S = 3.0
_STREAM_PAUSE_S = 30.0  # after hints that preferred polls
_NO_STREAM_S = 300.0  # after a server that refused the stream
_MAX_ACKS = 100
_CALLBACK_DELAY_S = 60.0

_log = logging.getLogger("syncbeat.smart_sync")


class Follower:
    """One device's sync. The methods that say something may be called at any time; `run` does the work."""

    def __init__(
        self,
        client: SyncbeatClient,
        device_id: str,
        user_id: str,
        cursors: Iterable[core_pb2.ScopeCursor],
        on_changes: OnChanges,
        clock: SyncClock,
        *,
        streams: bool,
    ) -> None:
        self.feeds = Feeds(cursors)
        self.activity = ActivityReports(0.0)
        self.stream = StreamSlot(self.stir)
        self.hint: pb.Hint | None = None
        self._client = client
        self._device_id = device_id
        self._user_id = user_id
        self._on_changes = on_changes
        self._clock = clock
        self._streams = streams
        self._time = Elapsed(clock)
        self._pace = Pace()
        self._stirred = asyncio.Event()
        self._expiries = 0
        self._scope_refused = False
        self._fetch_backoff = Backoff()
        self._fetch_after = 0.0
        self._stream_after = 0.0
        self._acks: deque[str] = deque(maxlen=_MAX_ACKS)

    def now(self) -> float:
        """Seconds since it was made, however the clock behaved."""
        return self._time.now()

    def stir(self) -> None:
        """Something is to be looked at."""
        self._stirred.set()

    def show(self) -> None:
        """The app came to the screen: a pause of streams that hints began ends too."""
        now = self.now()
        self.activity.show(now)
        if self._stream_after <= now + _STREAM_PAUSE_S:
            self._stream_after = now
        self.stir()

    def wake(self, place: core_pb2.ScopeCursor, ack: str, *, others: bool = False) -> None:
        """A push said that its scope has come to `place`, and perhaps that there may be news of others."""
        if others:
            self._pace.due_at = min(self._pace.due_at, self.now())
        if not self.feeds.has_reached(place):
            # That a push came says that the network is there: what failed before is tried now.
            self._fetch_after = min(self._fetch_after, self.now())
            self.feeds.want(place.scope, until=place, ack=ack)
        elif ack:
            self._acks.append(ack)
        self.stir()

    async def run(self) -> None:
        """Follow until it is cancelled; raises what cannot pass."""
        try:
            while True:
                await self._step()
        finally:
            await self.stream.close()

    async def _step(self) -> None:
        self._stirred.clear()
        now = self.now()
        if self.stream.has_broken():
            self._pace.spread_interval(now)
        want = self.feeds.next_wanted(now) if now >= max(self._fetch_after, self._pace.not_before) else None
        if want is not None:
            async with self._failures_noted(self._fetch_failed):
                await self._fetch(want)
        elif self._acks:
            await self._acknowledge(self._acks.popleft())
        elif now >= self._ask_at(now):
            async with self._failures_noted(self._ask_failed):
                await self._ask(now)
        elif self.stream.has_event:
            await self._take()
        elif self._should_stream(now):
            self._open_stream(now)
        else:
            await self._idle(now)

    async def _idle(self, now: float) -> None:
        """Wait for what comes first: a moment, an event of the stream, or something that was said."""
        next_at = min(self._ask_at(now), max(self.feeds.next_at(), self._fetch_after, self._pace.not_before))
        nap_s = max(0.0, min(next_at - now, _LOOK_EVERY_S))
        sleeping = asyncio.ensure_future(self._clock.sleep(nap_s))
        stirring = asyncio.ensure_future(self._stirred.wait())
        try:
            await asyncio.wait({sleeping, stirring}, return_when=asyncio.FIRST_COMPLETED)
            later = self._time.now(at_least=now + nap_s if sleeping.done() else 0.0)
        finally:
            sleeping.cancel()
            stirring.cancel()
        if later - now > nap_s + _GAP_S:
            _log.info("the device was suspended for some %.0f s", later - now - nap_s)
            # What was connected is not any more, whether it knows or not.
            await self.stream.close()
            self._pace.spread(_WAKE_SPREAD_S, later)
            self._stream_after = max(self._stream_after, self._pace.due_at)

    # -------------------------------------------------------------------------------------------------------- asking

    def _ask_at(self, now: float) -> float:
        streaming = self.stream.is_open
        poll_at = math.inf if streaming else self._pace.due_at
        return max(min(poll_at, self.activity.report_at(now, streaming=streaming)), self._pace.not_before)

    async def _ask(self, now: float) -> None:
        activity = self.activity.message(now)
        if self.activity.is_news(now, streaming=self.stream.is_open):
            self.activity.sent(now)
            report = pb.ReportActivityRequest(user_id=self._user_id, device_id=self._device_id, activity=activity)
            hint = (await self._client.sync.ReportActivity(report)).hint
            self.activity.taken(activity)
        else:
            # Where one cursor was refused, others may be: asked without any, the heads tell of all at once.
            cursors = [] if self._scope_refused else self.feeds.newest(MOST_NAMED)
            request = pb.GetHintRequest(
                user_id=self._user_id, device_id=self._device_id, cursors=cursors, activity=activity
            )
            hint = (await self._client.sync.GetHint(request)).hint
        self._scope_refused = False
        self._expiries = 0
        await self._follow(hint)
        self.feeds.compare(hint.heads)
        for scope in self.feeds.left(hint.heads, hint):
            await self._leave(scope)

    async def _follow(self, hint: pb.Hint) -> None:
        now = self.now()
        self.hint = hint
        self._pace.told(_seconds(hint.poll_interval), _seconds(hint.valid_duration), now)
        if self.stream.standing is None:
            return
        if not hint.prefer_stream:
            self._stream_after = now + _STREAM_PAUSE_S  # first, for who comes to the screen meanwhile ends it
            await self.stream.close()
        elif self.stream.standing != self.activity.standing and not self.activity.is_news(now, streaming=False):
            # Its hints are for what the device was. Another one is opened.
            await self.stream.close()

    # --------------------------------------------------------------------------------------------- fetching, applying

    async def _fetch(self, want: Want) -> None:
        """List a scope from its cursor to its end."""
        asked = want.asked
        known = self.feeds.cursors.get(want.scope)
        cursor = core_pb2.ScopeCursor(scope=want.scope) if want.drop or known is None else known
        more = True
        while more:
            page = await self._client.sync.ListChanges(
                pb.ListChangesRequest(
                    user_id=self._user_id,
                    device_id=self._device_id,
                    cursor=cursor,
                    page_size=self._client.rule.page_size,
                )
            )
            # A page that leads nowhere is the last: it would come for ever.
            more = page.more and page.next_cursor != cursor
            cursor = page.next_cursor
            batch = SyncBatch(want.scope, tuple(page.changes), cursor, drop=want.drop or page.reset)
            if batch.changes or batch.drop:
                await self._apply(batch)
            else:
                self.feeds.moved(batch)
            want.drop = False
        self._expiries = 0
        self._fetch_backoff.reset()
        self._acks.extend(self.feeds.fetched(want, asked))

    async def _apply(self, batch: SyncBatch) -> None:
        """Hand a batch over, again and again until it was taken; only then the cursor moves."""
        backoff = Backoff(_CALLBACK_DELAY_S)
        while True:
            try:
                await self._on_changes(batch)
            except Exception:  # noqa: BLE001  # whatever it is, the batch must not be lost
                delay_s = backoff.next_delay()
                _log.exception("a batch of %r was not applied; it is given again in %.1f s", batch.scope, delay_s)
                await self._clock.sleep(delay_s)
            else:
                break
        self.feeds.moved(batch)

    async def _leave(self, scope: str) -> None:
        _log.info("not a member of the scope %r any more", scope)
        await self._apply(SyncBatch(scope, (), None, drop=True))

    async def _acknowledge(self, token: str) -> None:
        request = push_service_pb2.AcknowledgeDeliveryRequest(
            ack_token=token, kind=push_service_pb2.ACKNOWLEDGE_KIND_RECEIVED
        )
        try:
            await self._client.push.AcknowledgeDelivery(request)
        except grpc.aio.AioRpcError as error:
            # The changes are here. At worst the server wakes the device once more for them.
            _log.info("a push could not be acknowledged (%s)", error.code().name)

    # -------------------------------------------------------------------------------------------------------- streams

    def _should_stream(self, now: float) -> bool:
        if self.stream.standing is not None or not self._streams or now < self._stream_after:
            return False
        # What the device is now, the hint has to know.
        return self.hint is not None and self.hint.prefer_stream and not self.activity.is_news(now, streaming=False)

    def _open_stream(self, now: float) -> None:
        watch = self._client.watch(
            self._device_id,
            cursors=self.feeds.cursors.values(),
            activity=self.activity.message(now),
            user_id=self._user_id,
            on_break=self.stir,
        )
        self.stream.open(watch, self.activity.standing)

    async def _take(self) -> None:
        try:
            event = self.stream.take()
        except SignedOut:
            raise
        except Exception as error:  # noqa: BLE001  # polls do without the stream, and tell what is really wrong
            _log.warning("the stream ended (%s); polling", type(error).__name__)
            await self.stream.close()
            now = self.now()
            self._stream_after = now + _NO_STREAM_S
            self._pace.spread_interval(now)
        else:
            await self._accept(event)

    async def _accept(self, event: WatchEvent) -> None:
        match event:
            case pb.Change():
                if self.feeds.is_news(event):
                    cursor = core_pb2.ScopeCursor(scope=event.scope, epoch=event.epoch, sequence=event.sequence)
                    await self._apply(SyncBatch(event.scope, (event,), cursor))
            case pb.Hint():
                await self._follow(event)
            case pb.Checkpoint():
                self.feeds.pass_checkpoint(event.cursors)
                for scope in self.feeds.left(event.cursors, event.hint):
                    await self._leave(scope)
                if event.HasField("hint"):
                    await self._follow(event.hint)
            case pb.Reset():
                self.feeds.want(event.scope, not_before=self.now() + _seconds(event.refetch_delay), drop=True)

    # ------------------------------------------------------------------------------------------------------- failures

    @contextlib.asynccontextmanager
    async def _failures_noted(self, note: Callable[[float | None], None]) -> AsyncIterator[None]:
        """Whatever passes is told to `note`, with how long the server asks to be left alone; the rest is raised."""
        try:
            yield
        except SignedOut:
            raise
        except grpc.aio.AioRpcError as error:
            problem = explain(error)
            scope = problem.left_scope
            if scope is not None and (scope in self.feeds.cursors or scope in self.feeds.wanted):
                self._scope_refused = True
                await self._leave(scope)
                return
            if problem.has_expired and self._client.renews_token and self._expiries < MAX_EXPIRIES:
                self._expiries += 1
            elif not problem.may_pass:
                raise
            _log.info("the server could not be asked (%s)", problem.code.name)
            note(problem.retry_after_s)
        except Exception as error:  # noqa: BLE001  # what returns the token raised it: perhaps the network is away
            _log.warning("the server could not be asked (%s)", type(error).__name__)
            note(None)

    def _ask_failed(self, asked_s: float | None) -> None:
        now = self.now()
        self._pace.failed(asked_s, now)
        self.activity.failed(now)

    def _fetch_failed(self, asked_s: float | None) -> None:
        now = self.now()
        self._pace.leave_alone(asked_s, now)
        self._fetch_after = max(now, self._pace.not_before) + self._fetch_backoff.next_delay()


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
