"""Runs the sync of a `SmartSync`: one task that polls when it is due, fetches what is behind and reads the stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import grpc
from google.protobuf.duration_pb2 import Duration

from syncbeat.activity import ActivityReports
from syncbeat.backoff import Backoff
from syncbeat.boottime_clock import ElapsedTime, SyncClock
from syncbeat.cursor_state import MAX_NAMED_CURSORS, CursorState, PendingFetch, SyncBatch
from syncbeat.errors import MAX_EXPIRIES, explain
from syncbeat.poll_schedule import SAFE_INTERVAL_S, PollSchedule
from syncbeat.scope_fetcher import ScopeFetcher, SyncedDevice
from syncbeat.session_tokens import SignedOut
from syncbeat.stream_slot import StreamSlot
from syncbeat.v1 import core_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.watch import WatchEvent

if TYPE_CHECKING:
    from syncbeat.client import SyncbeatClient

_MAX_NAP_S = 10.0  # timers stand still while a device sleeps, its clock does not
_SUSPENDED_S = 10.0  # a nap that took so much longer than planned means that the device was suspended
_WAKE_SPREAD_S = 3.0
_STREAM_PAUSE_S = 30.0  # after hints that preferred polls
_STREAM_REFUSED_S = 300.0  # after a server that refused the stream
_MAX_ACKS = 100

_log = logging.getLogger("syncbeat.smart_sync")


class SyncLoop:
    """The sync of one device. `run` does the work; the other methods may be called at any time."""

    def __init__(
        self,
        client: SyncbeatClient,
        device: SyncedDevice,
        state: CursorState,
        fetcher: ScopeFetcher,
        clock: SyncClock,
    ) -> None:
        self.state = state
        self.activity = ActivityReports(0.0)
        self.stream = StreamSlot(self.wake)
        self.hint: pb.Hint | None = None
        self._client = client
        self._device = device
        self._fetcher = fetcher
        self._clock = clock
        self._time = ElapsedTime(clock)
        self._schedule = PollSchedule()
        self._woken = asyncio.Event()
        self._expiries = 0
        self._scope_refused = False
        self._fetch_backoff = Backoff(SAFE_INTERVAL_S)
        self._fetch_after = 0.0
        self._stream_after = 0.0
        self._acks: deque[str] = deque(maxlen=_MAX_ACKS)

    def now(self) -> float:
        """Return the seconds since it was made, however the clock behaved."""
        return self._time.now()

    def wake(self) -> None:
        """End a nap of the loop, since there is something to do."""
        self._woken.set()

    def enter_foreground(self) -> None:
        """Note that the app came to the screen, which also ends a pause of streams that hints began."""
        now = self.now()
        self.activity.enter_foreground(now)
        if self._stream_after <= now + _STREAM_PAUSE_S:
            self._stream_after = now
        self.wake()

    def receive_push(self, place: core_pb2.ScopeCursor, ack: str, *, others: bool = False) -> None:
        """Note a push: its scope has come to `place`; with `others` there may be news of other scopes too."""
        if others:
            self._schedule.due_at = min(self._schedule.due_at, self.now())
        if not self.state.has_reached(place):
            # A push proves that the network is there: a fetch that failed before is tried now.
            self._fetch_after = min(self._fetch_after, self.now())
            self.state.request(place.scope, until=place, ack=ack)
        elif ack:
            self._acks.append(ack)
        self.wake()

    async def run(self) -> None:
        """Keep the device in sync until it is cancelled. Raises errors that cannot pass."""
        try:
            while True:
                await self._step()
        finally:
            await self.stream.close()

    async def _step(self) -> None:
        self._woken.clear()
        now = self.now()
        if self.stream.has_broken():
            self._schedule.spread_over_interval(now)
        may_fetch = now >= max(self._fetch_after, self._schedule.not_before)
        fetch = self.state.next_pending(now) if may_fetch else None
        if fetch is not None:
            async with self._failures_recorded(self._record_fetch_failure):
                await self._fetch(fetch)
        elif self._acks:
            await self._acknowledge(self._acks.popleft())
        elif now >= self._call_at(now):
            async with self._failures_recorded(self._record_call_failure):
                await self._poll_or_report(now)
        elif self.stream.has_event:
            await self._take_event()
        elif self._should_stream(now):
            self._open_stream(now)
        else:
            await self._nap(now)

    async def _nap(self, now: float) -> None:
        """Wait for what comes first: the next due moment, an event of the stream, or a call of `wake`."""
        next_at = min(self._call_at(now), max(self.state.next_at(), self._fetch_after, self._schedule.not_before))
        nap_s = max(0.0, min(next_at - now, _MAX_NAP_S))
        sleeping = asyncio.ensure_future(self._clock.sleep(nap_s))
        waking = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
            later = self._time.now(at_least=now + nap_s if sleeping.done() else 0.0)
        finally:
            sleeping.cancel()
            waking.cancel()
        if later - now > nap_s + _SUSPENDED_S:
            _log.info("the device was suspended for some %.0f s", later - now - nap_s)
            # Its connections are dead, whether they know or not.
            await self.stream.close()
            self._schedule.spread(_WAKE_SPREAD_S, later)
            self._stream_after = max(self._stream_after, self._schedule.due_at)

    # ---------------------------------------------------------------------------------------------- polls and reports

    def _call_at(self, now: float) -> float:
        streaming = self.stream.is_open
        poll_at = math.inf if streaming else self._schedule.due_at
        return max(min(poll_at, self.activity.report_at(now, streaming=streaming)), self._schedule.not_before)

    async def _poll_or_report(self, now: float) -> None:
        activity = self.activity.message(now)
        user_id, device_id = self._device.user_id, self._device.device_id
        if self.activity.is_unreported(now, streaming=self.stream.is_open):
            self.activity.record_sent(now)
            report = pb.ReportActivityRequest(user_id=user_id, device_id=device_id, activity=activity)
            hint = (await self._client.sync.ReportActivity(report)).hint
            self.activity.record_accepted(activity)
        else:
            # Where one cursor was refused, others may be: without any, the answer has the heads of all scopes.
            cursors = [] if self._scope_refused else self.state.newest(MAX_NAMED_CURSORS)
            request = pb.GetHintRequest(user_id=user_id, device_id=device_id, cursors=cursors, activity=activity)
            hint = (await self._client.sync.GetHint(request)).hint
        self._scope_refused = False
        self._expiries = 0
        await self._follow_hint(hint)
        self.state.compare(hint.heads)
        for scope in self.state.left_scopes(hint.heads, hint):
            await self._fetcher.leave(scope)

    async def _follow_hint(self, hint: pb.Hint) -> None:
        now = self.now()
        self.hint = hint
        self._schedule.follow_hint(_seconds(hint.poll_interval), _seconds(hint.valid_duration), now)
        if self.stream.status is None:
            return
        if not hint.prefer_stream:
            self._stream_after = now + _STREAM_PAUSE_S  # before the await: `enter_foreground` may end the pause
            await self.stream.close()
        elif self.stream.status != self.activity.status and not self.activity.is_unreported(now, streaming=False):
            # Its hints are made for a status that has changed; another stream is opened.
            await self.stream.close()

    # ------------------------------------------------------------------------------------------------ fetches and acks

    async def _fetch(self, fetch: PendingFetch) -> None:
        acks = await self._fetcher.fetch(fetch)
        self._expiries = 0
        self._fetch_backoff.reset()
        self._acks.extend(acks)

    async def _acknowledge(self, token: str) -> None:
        request = push_service_pb2.AcknowledgeDeliveryRequest(
            ack_token=token, kind=push_service_pb2.ACKNOWLEDGE_KIND_RECEIVED
        )
        try:
            await self._client.push.AcknowledgeDelivery(request)
        except grpc.aio.AioRpcError as error:
            # The changes are here. At worst the server wakes the device once more for them.
            _log.info("a push could not be acknowledged (%s)", error.code().name)

    # --------------------------------------------------------------------------------------------------------- streams

    def _should_stream(self, now: float) -> bool:
        if self.stream.status is not None or not self._device.streams or now < self._stream_after:
            return False
        # The hint has to be made for the present status.
        return (
            self.hint is not None and self.hint.prefer_stream and not self.activity.is_unreported(now, streaming=False)
        )

    def _open_stream(self, now: float) -> None:
        watch = self._client.watch(
            self._device.device_id,
            cursors=self.state.cursors.values(),
            activity=self.activity.message(now),
            user_id=self._device.user_id,
            on_break=self.wake,
        )
        self.stream.open(watch, self.activity.status)

    async def _take_event(self) -> None:
        try:
            event = self.stream.take()
        except SignedOut:
            raise
        except Exception as error:  # noqa: BLE001  # polls do without the stream, and raise what is really wrong
            _log.warning("the stream ended (%s); polling", type(error).__name__)
            await self.stream.close()
            now = self.now()
            self._stream_after = now + _STREAM_REFUSED_S
            self._schedule.spread_over_interval(now)
        else:
            await self._handle_event(event)

    async def _handle_event(self, event: WatchEvent) -> None:
        match event:
            case pb.Change():
                if self.state.accepts(event):
                    cursor = core_pb2.ScopeCursor(scope=event.scope, epoch=event.epoch, sequence=event.sequence)
                    await self._fetcher.apply(SyncBatch(event.scope, (event,), cursor))
            case pb.Hint():
                await self._follow_hint(event)
            case pb.Checkpoint():
                self.state.pass_checkpoint(event.cursors)
                for scope in self.state.left_scopes(event.cursors, event.hint):
                    await self._fetcher.leave(scope)
                if event.HasField("hint"):
                    await self._follow_hint(event.hint)
            case pb.Reset():
                self.state.request(event.scope, not_before=self.now() + _seconds(event.refetch_delay), drop=True)

    # -------------------------------------------------------------------------------------------------------- failures

    @contextlib.asynccontextmanager
    async def _failures_recorded(self, record: Callable[[float | None], None]) -> AsyncIterator[None]:
        """Pass failures that may pass to `record`, with the seconds the server asked to wait; raise all others."""
        try:
            yield
        except SignedOut:
            raise
        except grpc.aio.AioRpcError as error:
            problem = explain(error)
            scope = problem.left_scope
            if scope is not None and (scope in self.state.cursors or scope in self.state.pending):
                self._scope_refused = True
                await self._fetcher.leave(scope)
                return
            if problem.has_expired and self._client.renews_token and self._expiries < MAX_EXPIRIES:
                self._expiries += 1
            elif not problem.may_pass:
                raise
            _log.info("the server could not be asked (%s)", problem.code.name)
            record(problem.retry_after_s)
        except Exception as error:  # noqa: BLE001  # the app's token source raised it: perhaps the network is away
            _log.warning("the server could not be asked (%s)", type(error).__name__)
            record(None)

    def _record_call_failure(self, retry_after_s: float | None) -> None:
        now = self.now()
        self._schedule.record_failure(retry_after_s, now)
        self.activity.record_failure(now)

    def _record_fetch_failure(self, retry_after_s: float | None) -> None:
        now = self.now()
        self._schedule.hold_off(retry_after_s, now)
        self._fetch_after = max(now, self._schedule.not_before) + self._fetch_backoff.next_delay()


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
