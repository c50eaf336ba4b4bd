"""Follows changes over one stream after the other, resumed by cursor: none is missed and none comes twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import grpc

from syncbeat.backoff import jitter
from syncbeat.client_options import DEFAULT_RULE, ClientRule
from syncbeat.cursor_state import MAX_NAMED_CURSORS
from syncbeat.errors import MAX_EXPIRIES, ErrorDetails, explain
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat.watch_position import WatchPosition

if TYPE_CHECKING:
    from syncbeat.v1.sync_service_pb2_grpc import SyncServiceAsyncStub

WatchEvent: TypeAlias = pb.Change | pb.Hint | pb.Checkpoint | pb.Reset
"""The events that a watch yields."""
Renew: TypeAlias = Callable[[float], Awaitable[None]] | None
"""Renews the token of streams that were opened at a moment (monotonic seconds) and found expired; None: it cannot."""
OnSilence: TypeAlias = Callable[[object], None]
"""Called with a call that brought nothing for three heartbeats, before it is given up."""

_MIN_DRAIN_DELAY_S = 0.1
_MAX_RETRY_AFTER_S = 300.0
_STABLE_S = 10.0  # a stream that lasted so long makes the next delay a short one again
_SILENT_HEARTBEATS = 3
_PAGE_SIZE = 1_000

_log = logging.getLogger(__name__)


class Watch:
    """Yields changes, hints, checkpoints and resets of one caller, once each, until it is closed.

        async with client.watch("phone", cursors=kept) as watch:
            async for event in watch:
                ...  # handle it, then store watch.cursors

    It reconnects by itself: after a lost connection or an error that may pass, with a delay drawn from 0 up to a bound
    that doubles (30 s at most); after a drain, when the server says; and when the token has expired, at once with a new
    one. Every other error is raised and ends it: a refused or revoked token, an invalid request, no access, a message
    above a limit of gRPC's. So does an expired token that is a plain str, or that is followed by eight others that have
    expired too.

    A watch of all scopes has one `token` instead of cursors, whatever the number of scopes: store it when a checkpoint
    has come and everything before it is handled. A reset without a scope says that the token is no longer good: drop
    what is kept of all scopes, and go on reading, since everything comes next.

    Resuming is safe because the server sends the changes of one scope in the order of their sequence: when a change
    has come, all before it in its scope have. After a reset the watch goes on from its head: list the scope from the
    start before storing the cursors. A scope whose membership ended while the watch was away is no longer followed.
    """

    def __init__(
        self,
        stub: SyncServiceAsyncStub,
        request: pb.WatchHintsRequest,
        *,
        token_changes: bool,
        on_silence: OnSilence,
        renew: Renew = None,
        on_break: Callable[[], None] | None = None,
        rule: ClientRule = DEFAULT_RULE,
    ) -> None:
        """`request` names the scopes and where to start; `token_changes` if a new attempt may have a new token.

        `renew` is called when the server finds the token expired, `on_break` when a stream ended without a drain,
        `on_silence` with the call of a stream that brought nothing for three heartbeats."""
        self._streams = _Streams(
            stub,
            request,
            token_changes=token_changes,
            on_silence=on_silence,
            renew=renew,
            on_break=on_break,
            rule=rule,
        )
        self._events = self._streams.events()

    @property
    def cursors(self) -> list[core_pb2.ScopeCursor]:
        """The cursors to store and resume by: they include the event that was yielded last."""
        return list(self._streams.position.cursors.values())

    @property
    def token(self) -> str:
        """The token to store and resume a watch of all scopes by, as of the last checkpoint; empty before that."""
        return self._streams.position.token

    @property
    def is_open(self) -> bool:
        """True while a stream brings what is new: one has begun and has not broken. A drained one has not."""
        return self._streams.is_open

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        return await anext(self._events)

    async def close(self) -> None:
        """End the stream."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Streams:
    """The streams behind a watch, apart from it, so that they end when nobody refers to the watch any more."""

    def __init__(
        self,
        stub: SyncServiceAsyncStub,
        request: pb.WatchHintsRequest,
        *,
        token_changes: bool,
        on_silence: OnSilence,
        renew: Renew,
        on_break: Callable[[], None] | None,
        rule: ClientRule,
    ) -> None:
        self._rule = rule
        self._renew = renew
        self._on_silence = on_silence
        self._on_break = on_break
        self._stub = stub
        self._request = request
        self._token_changes = token_changes
        self.position = WatchPosition(request, rule.max_cursors_beside_token)
        self.is_open = False

    async def events(self) -> AsyncGenerator[WatchEvent, None]:
        """Yield the events of one stream after the other."""
        streak = _FailureStreak(self._rule)
        while True:
            opened_at = time.monotonic()
            drain: pb.Drain | None = None
            failure: grpc.aio.AioRpcError | None = None
            try:
                async with contextlib.aclosing(self._stream()) as events:
                    async for event in events:
                        if isinstance(event, pb.Drain):
                            drain = event
                        else:
                            yield event
            except grpc.aio.AioRpcError as error:
                failure = error
            except TimeoutError:
                _log.info("the stream was silent for too long")
            self.is_open = drain is not None
            if drain is None and self._on_break is not None:
                self._on_break()
            if time.monotonic() - opened_at >= _STABLE_S:
                streak = _FailureStreak(self._rule)
            problem = explain(failure) if failure is not None else None
            if problem is not None and self._drop_left_scope(problem):
                continue
            if failure is not None and problem is not None and not self._may_pass(problem, streak):
                raise failure
            if self._renew is not None and problem is not None and problem.has_expired:
                await self._renew(opened_at)
            delay_s = _drain_delay(drain) if drain is not None else streak.next_delay(problem)
            cause = problem.code.name if problem is not None else "drained" if drain is not None else "no status"
            _log.info("the stream ended (%s); connecting again in %.1f s", cause, delay_s)
            await asyncio.sleep(delay_s)

    def _may_pass(self, problem: ErrorDetails, streak: _FailureStreak) -> bool:
        if problem.has_expired:
            return self._token_changes and streak.expiries < MAX_EXPIRIES
        return problem.may_pass

    async def _stream(self) -> AsyncGenerator[WatchEvent | pb.Drain, None]:
        """Yield the events of one stream from the cursors on."""
        at_start = list(self.position.cursors.values())
        request = pb.WatchHintsRequest()
        request.CopyFrom(self._request)
        del request.cursors[:]
        if self.position.token:
            request.token = self.position.token
            at_start = []
        request.cursors.extend(at_start[:MAX_NAMED_CURSORS])
        silent_s = request.heartbeat_interval.ToTimedelta().total_seconds() * _SILENT_HEARTBEATS
        call = self._stub.WatchHints(request)
        try:
            unnamed = [cursor for cursor in at_start[MAX_NAMED_CURSORS:] if cursor.HasField("sequence")]
            while True:
                try:
                    async with asyncio.timeout(silent_s):
                        response = await call.read()
                except TimeoutError:
                    self._on_silence(call)
                    raise
                if not isinstance(response, pb.WatchHintsResponse):
                    return
                self.is_open = True
                # The server started these scopes from now, so that what came before has to be listed.
                while unnamed:
                    async with contextlib.aclosing(self._list(unnamed.pop())) as listed:
                        async for event in listed:
                            yield event
                accepted = self._accept(response)
                if accepted is not None:
                    yield accepted
        finally:
            call.cancel()

    async def _list(self, cursor: core_pb2.ScopeCursor) -> AsyncGenerator[WatchEvent, None]:
        more = True
        while more:
            page = await self._stub.ListChanges(
                pb.ListChangesRequest(
                    app_id=self._request.app_id, user_id=self._request.user_id, cursor=cursor, page_size=_PAGE_SIZE
                )
            )
            cursor, more = page.next_cursor, page.more
            if page.reset:
                self.position.store(cursor)
                yield pb.Reset(scope=cursor.scope, head=cursor)
                return
            for change in page.changes:
                if self.position.accepts(change):
                    yield change
            self.position.store(cursor)

    def _accept(self, response: pb.WatchHintsResponse) -> WatchEvent | pb.Drain | None:
        """Move past an event and return it; None for a change that is not new, or an unknown kind of event."""
        match response.WhichOneof("event"):
            case "change":
                return response.change if self.position.accepts(response.change) else None
            case "hint":
                return response.hint
            case "checkpoint":
                self.position.pass_checkpoint(response.checkpoint)
                return response.checkpoint
            case "reset":
                self.position.reset(response.reset)
                return response.reset
            case "drain":
                return response.drain
            case _:
                return None

    def _drop_left_scope(self, problem: ErrorDetails) -> bool:
        """Forget a cursor that was refused because the caller has left its scope, and tell if one was."""
        scope = problem.left_scope
        if scope is None or not self.position.forget(scope):
            return False
        _log.warning("not a member of the scope %r: it is no longer followed", scope)
        return True


@dataclass
class _FailureStreak:
    """The streams that failed in a row, and the last of them in a row whose token had expired."""

    rule: ClientRule
    failures: int = 0
    expiries: int = 0

    def next_delay(self, problem: ErrorDetails | None) -> float:
        """Count one more failure, and return how long to wait after it, in seconds."""
        self.expiries = self.expiries + 1 if problem is not None and problem.has_expired else 0
        if self.expiries == 1:
            return 0.0
        self.failures += 1
        retry_after_s = (problem.retry_after_s if problem is not None else None) or 0.0
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        max_s = min(self.rule.max_delay_s, self.rule.first_delay_s * 2 ** min(self.failures - 1, 10))
        return min(retry_after_s, _MAX_RETRY_AFTER_S) + jitter(max_s)


def _drain_delay(drain: pb.Drain) -> float:
    delay_s = drain.reconnect_delay.ToTimedelta().total_seconds()
    return max(_MIN_DRAIN_DELAY_S, min(delay_s, _MAX_RETRY_AFTER_S))
