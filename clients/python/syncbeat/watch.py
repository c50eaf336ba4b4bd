"""A feed that outlives its streams: it resumes by cursor, so that no change is missed and none comes twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import grpc

from syncbeat.errors import MAX_EXPIRIES, ErrorDetails, explain
from syncbeat.feeds import MOST_NAMED, names_some
from syncbeat.rules import DEFAULT_RULE, ClientRule
from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb

if TYPE_CHECKING:
    from syncbeat.v1.sync_service_pb2_grpc import SyncServiceAsyncStub

WatchEvent: TypeAlias = pb.Change | pb.Hint | pb.Checkpoint | pb.Reset
"""What a watch yields."""
Renew: TypeAlias = Callable[[float], Awaitable[None]] | None
"""Gets a new token for streams that were opened at a moment (monotonic seconds) and found expired; None cannot."""
OnSilence: TypeAlias = Callable[[object], None]
"""Told of a call that brought nothing for three heartbeats, before it is given up."""

_MIN_DRAIN_DELAY_S = 0.1
_MAX_ASKED_DELAY_S = 300.0
_STEADY_S = 10.0  # a stream that lasted so long makes the next delay a short one again
_SILENT_HEARTBEATS = 3
_MAX_KEPT = 100_000  # as many as the server keeps for a stream of all scopes that has no token
_PAGE = 1_000

_log = logging.getLogger(__name__)


class Watch:
    """Yields changes, hints, checkpoints and resets of one caller, once each, until it is closed.

        async with client.watch("phone", cursors=kept) as watch:
            async for event in watch:
                ...  # handle it, then keep watch.cursors

    It connects again by itself: after a lost connection or an error that passes, with a delay drawn from 0 up to a
    bound that doubles (30 s at most); after a drain, when the server says; and when the token has expired, at once
    with a new one. Every other error is raised and ends it: a refused or revoked token, a wrong request, no access, a
    message above a limit of gRPC's. So does an expired token that is a plain str, or that is followed by eight others
    that have expired too.

    A watch of all scopes keeps one `token` instead of cursors, whatever the number of scopes: keep that when a
    checkpoint has come and what was before it is handled. A reset without a scope says that the token can no longer be
    gone on from: drop what is kept of all scopes, and go on reading, since all there is comes next.

    Resuming is safe because the server sends the changes of one scope in the order of their sequence: when a change
    has come, all before it in its scope have. After a reset the watch goes on from its head: list the scope from the
    start before keeping the cursors. A scope whose membership ended while the watch was away is no longer followed.
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
        """`request` says what to watch and where to start; `token_changes`: whether a new attempt has a new token;
        `renew` is called when the server finds the token expired, `on_break` when a stream ended without a drain,
        `on_silence` with the call of a stream that brought nothing for three heartbeats."""
        self._feed = _Feed(
            stub,
            request,
            token_changes=token_changes,
            on_silence=on_silence,
            renew=renew,
            on_break=on_break,
            rule=rule,
        )
        self._events = self._feed.follow()

    @property
    def cursors(self) -> list[core_pb2.ScopeCursor]:
        """Where the watch is in each scope, the event that was yielded last included. What to keep, to resume by."""
        return list(self._feed.cursors.values())

    @property
    def token(self) -> str:
        """Where a watch of all scopes is, as of the last checkpoint. What to keep, to resume by; empty before that."""
        return self._feed.token

    @property
    def is_open(self) -> bool:
        """Whether a stream brings what is new: one has begun and did not break. One that was drained did not."""
        return self._feed.is_open

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


class _Feed:
    """The streams behind a watch, apart from it: the stream of a watch that nobody holds any more ends."""

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
        self.cursors = {cursor.scope: cursor for cursor in request.cursors}
        self.token = request.token
        self.is_open = False

    async def follow(self) -> AsyncGenerator[WatchEvent, None]:
        """The events of one stream after the other."""
        streak = _Streak(self._rule)
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
            if time.monotonic() - opened_at >= _STEADY_S:
                streak = _Streak(self._rule)
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

    def _may_pass(self, problem: ErrorDetails, streak: _Streak) -> bool:
        if problem.has_expired:
            return self._token_changes and streak.expiries < MAX_EXPIRIES
        return problem.may_pass

    async def _stream(self) -> AsyncGenerator[WatchEvent | pb.Drain, None]:
        """The events of one stream from the cursors on."""
        at_start = list(self.cursors.values())
        request = pb.WatchHintsRequest()
        request.CopyFrom(self._request)
        del request.cursors[:]
        if self.token:
            request.token = self.token
            at_start = []
        request.cursors.extend(at_start[:MOST_NAMED])
        silent_s = request.heartbeat_interval.ToTimedelta().total_seconds() * _SILENT_HEARTBEATS
        call = self._stub.WatchHints(request)
        try:
            unnamed = [cursor for cursor in at_start[MOST_NAMED:] if cursor.HasField("sequence")]
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
                # These start from now on the server. It has started: what came before is listed.
                while unnamed:
                    async with contextlib.aclosing(self._list(unnamed.pop())) as listed:
                        async for event in listed:
                            yield event
                news = self._accept(response)
                if news is not None:
                    yield news
        finally:
            call.cancel()

    async def _list(self, cursor: core_pb2.ScopeCursor) -> AsyncGenerator[WatchEvent, None]:
        more = True
        while more:
            page = await self._stub.ListChanges(
                pb.ListChangesRequest(
                    app_id=self._request.app_id, user_id=self._request.user_id, cursor=cursor, page_size=_PAGE
                )
            )
            cursor, more = page.next_cursor, page.more
            if page.reset:
                self._keep(cursor)
                yield pb.Reset(scope=cursor.scope, head=cursor)
                return
            for change in page.changes:
                if self._is_news(change):
                    yield change
            self._keep(cursor)

    def _accept(self, response: pb.WatchHintsResponse) -> WatchEvent | pb.Drain | None:
        """The event to yield, with the cursors moved past it; None for what is no news, or of an unknown kind."""
        match response.WhichOneof("event"):
            case "change":
                return response.change if self._is_news(response.change) else None
            case "hint":
                return response.hint
            case "checkpoint":
                self._move_to(response.checkpoint)
                return response.checkpoint
            case "reset":
                self._start_again(response.reset)
                return response.reset
            case "drain":
                return response.drain
            case _:
                return None

    def _is_news(self, change: pb.Change) -> bool:
        cursor = core_pb2.ScopeCursor(scope=change.scope, epoch=change.epoch, sequence=change.sequence)
        if not self._is_ahead(cursor):
            return False
        self._keep(cursor)
        return True

    def _is_ahead(self, cursor: core_pb2.ScopeCursor) -> bool:
        known = self.cursors.get(cursor.scope)
        if known is None or not known.HasField("sequence") or known.epoch not in ("", cursor.epoch):
            return True
        return cursor.sequence > known.sequence

    def _start_again(self, reset: pb.Reset) -> None:
        if reset.scope:
            self._keep(reset.head)
        else:
            self.cursors.clear()  # all comes anew, with sequences that may be lower; the next token is good

    def _move_to(self, checkpoint: pb.Checkpoint) -> None:
        self.token = checkpoint.token or self.token
        followed = {cursor.scope for cursor in checkpoint.cursors}
        if not self._request.all_scopes and not names_some(followed, checkpoint.hint):
            # A user's checkpoint names every scope it has. A cursor of one that it has left would be refused.
            for scope in self.cursors.keys() - followed:
                del self.cursors[scope]
        for cursor in checkpoint.cursors:
            known = self.cursors.get(cursor.scope)
            if self._is_ahead(cursor) or (known is not None and not known.epoch):
                self._keep(cursor)

    def _keep(self, cursor: core_pb2.ScopeCursor) -> None:
        # The scopes that changed last stand last; when there are too many, those that changed first are forgotten.
        self.cursors.pop(cursor.scope, None)
        self.cursors[cursor.scope] = cursor
        while len(self.cursors) > (self._rule.max_cursors_beside_token if self.token else _MAX_KEPT):
            del self.cursors[next(iter(self.cursors))]

    def _drop_left_scope(self, problem: ErrorDetails) -> bool:
        """Forget a cursor that was refused because its scope is not the caller's any more; whether one was."""
        scope = problem.left_scope
        if scope not in self.cursors:
            return False
        _log.warning("not a member of the scope %r: it is no longer followed", scope)
        del self.cursors[scope]
        return True


@dataclass
class _Streak:
    """The streams that failed in a row, and how many of these last of them because the token had expired."""

    rule: ClientRule
    failures: int = 0
    expiries: int = 0

    def next_delay(self, problem: ErrorDetails | None) -> float:
        """Count one more, and how long to wait after it, in seconds."""
        self.expiries = self.expiries + 1 if problem is not None and problem.has_expired else 0
        if self.expiries == 1:
            return 0.0
        self.failures += 1
        asked_s = (problem.retry_after_s if problem is not None else None) or 0.0
        # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        longest_s = min(self.rule.max_delay_s, self.rule.first_delay_s * 2 ** min(self.failures - 1, 10))
        return min(asked_s, _MAX_ASKED_DELAY_S) + random.uniform(0.0, longest_s)  # noqa: S311  # not a secret


def _drain_delay(drain: pb.Drain) -> float:
    asked_s = drain.reconnect_delay.ToTimedelta().total_seconds()
    return max(_MIN_DRAIN_DELAY_S, min(asked_s, _MAX_ASKED_DELAY_S))
