"""Keeps the access token of a user's session fresh, by one refresh at a time, whoever asks for a token."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import grpc

from syncbeat.backoff import jitter
from syncbeat.errors import explain
from syncbeat.session_tokens import SessionStorage, SessionTokens, SignedOut
from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1.error_reason_pb2 import ErrorReason

if TYPE_CHECKING:
    from syncbeat.v1.auth_service_pb2_grpc import AuthServiceAsyncStub

_log = logging.getLogger(__name__)

_EARLY_S, _JITTER_S = 300.0, 60.0
_HALF = 0.5
_MIN_LEFT_S = 5.0  # a token that expires while the call is on its way is of no use
_MAX_NAP_S = 30.0  # timers stand still while a device sleeps, its clock does not
_ATTEMPT_TIMEOUT_S = 10.0
_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 60.0
_SIGNED_OUT_REASONS = frozenset(
    {
        ErrorReason.ERROR_REASON_TOKEN_INVALID,
        ErrorReason.ERROR_REASON_TOKEN_EXPIRED,
        ErrorReason.ERROR_REASON_TOKEN_REVOKED,
    }
)


class SessionClock(Protocol):
    """The source of time of a session."""

    def now(self) -> datetime:
        """Return the present moment, time-zone aware."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class _SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


OnSignedOut = Callable[[], SessionTokens | Awaitable[SessionTokens | None] | None]
"""Called when the session is over. New tokens that it returns, from signing in again, are used from then on."""


class Session:
    """A user's session. Give it to `SyncbeatClient(address, token=session)`, whose calls then carry a fresh token.

    The token is renewed 5 to 6 minutes before it expires (a short-lived one at half of its life), in the background and
    when it is asked for; if the server finds it expired, it is renewed once and the call repeated. However many tasks
    ask, one refresh is made, and its tokens are stored before any of them gets one.
    """

    def __init__(
        self,
        tokens: SessionTokens | None = None,
        *,
        storage: SessionStorage | None = None,
        on_signed_out: OnSignedOut | None = None,
        clock: SessionClock | None = None,
    ) -> None:
        """Without `tokens`, those in `storage` are used."""
        self._tokens = tokens
        self._storage = storage
        self._on_signed_out = on_signed_out
        self._clock: SessionClock = clock or _SystemClock()
        self._auth: AuthServiceAsyncStub | None = None
        self._opened: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[SessionTokens] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._unsaved = tokens is not None
        self._adopted_at = 0.0
        self._early_s = 0.0
        self._choose_early_s()

    def bind(self, auth: AuthServiceAsyncStub) -> None:
        """Refresh over this service from now on; called by the client that the session is given to."""
        self._auth = auth

    async def token(self) -> str:
        """Return the access token, which is valid for some seconds more at least.

        Raises:
            SignedOut: there is no session any more.
            grpc.aio.AioRpcError: the token has expired and could not be renewed now.
        """
        await self._open()
        tokens = self._require_tokens()
        left_s = (tokens.access_expires_at - self._clock.now()).total_seconds()
        if left_s <= _MIN_LEFT_S:
            tokens = await self._await_refresh()
        elif left_s <= self._early_s:
            self._start_refresh()
        if self._unsaved:
            await self._save(tokens)
        return tokens.access_token

    async def renew(self, refused: str) -> str:
        """Return a token in place of one that the server found expired; another task may have renewed it already."""
        await self._open()
        tokens = self._require_tokens()
        if tokens.access_token == refused:
            tokens = await self._await_refresh()
        return tokens.access_token

    async def renew_after_stream(self, opened_at: float) -> None:
        """Renew the token of a stream opened at a moment (monotonic seconds), unless that has been done since."""
        if self._adopted_at < opened_at:
            await self._open()
            await self._await_refresh()

    async def sign_out(self) -> None:
        """End the session on the server, if that can be reached, and forget it here."""
        await self._open()
        tokens, auth = self._tokens, self._auth
        if tokens is not None and auth is not None:
            request = pb.RevokeSessionRequest(session_id=tokens.session_id)
            metadata = (("authorization", f"Bearer {tokens.access_token}"),)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await auth.RevokeSession(request, timeout=_ATTEMPT_TIMEOUT_S, metadata=metadata)
        self._tokens = None
        await self._store(None)
        await self.close()

    async def close(self) -> None:
        """End the work in the background. The tokens stay where they are stored."""
        tasks = [task for task in (self._keeping, self._refreshing) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _require_tokens(self) -> SessionTokens:
        if self._tokens is None:
            raise SignedOut("there is no session: sign in again")
        return self._tokens

    async def _open(self) -> None:
        if self._opened is None:
            self._opened = asyncio.ensure_future(self._load())
            self._keeping = asyncio.ensure_future(self._keep_fresh())
        await asyncio.shield(self._opened)

    async def _load(self) -> None:
        if self._tokens is not None or self._storage is None:
            return
        text = await self._storage.load()
        if text is not None:
            try:
                self._tokens = SessionTokens.from_json(text)
            except (ValueError, KeyError, TypeError):
                _log.warning("the stored text is no session and is not used")
        self._choose_early_s()

    def _choose_early_s(self) -> None:
        # Jittered, so that devices that signed in together do not refresh together.
        self._early_s = _EARLY_S + jitter(_JITTER_S)
        if self._tokens is not None:
            life_s = (self._tokens.access_expires_at - self._clock.now()).total_seconds()
            self._early_s = min(self._early_s, max(0.0, life_s) * _HALF)

    def _start_refresh(self) -> asyncio.Task[SessionTokens]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
            self._refreshing.add_done_callback(_retrieve)
        return self._refreshing

    async def _await_refresh(self) -> SessionTokens:
        # Shielded: a caller that is cancelled does not cancel the refresh that others wait for.
        return await asyncio.shield(self._start_refresh())

    async def _refresh(self) -> SessionTokens:
        if self._auth is None:
            raise RuntimeError("a session needs a client: SyncbeatClient(address, token=session)")
        request = pb.RefreshSessionRequest(refresh_token=self._require_tokens().refresh_token)
        try:
            # After a lost response the same token is sent again, and the response is the same.
            answer = await self._auth.RefreshSession(request, timeout=_ATTEMPT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if explain(error).reason not in _SIGNED_OUT_REASONS:
                raise
            return await self._end_session()
        return await self._adopt(SessionTokens.of(answer))

    async def _adopt(self, tokens: SessionTokens) -> SessionTokens:
        # In memory first: the old refresh token is spent, even if the storage fails.
        self._tokens, self._unsaved, self._adopted_at = tokens, True, time.monotonic()
        self._choose_early_s()
        await self._save(tokens)
        return tokens

    async def _save(self, tokens: SessionTokens) -> None:
        await self._store(tokens.to_json())
        self._unsaved = False

    async def _store(self, text: str | None) -> None:
        if self._storage is not None:
            await self._storage.save(text)

    async def _end_session(self) -> SessionTokens:
        _log.info("the session is over")
        self._tokens = None
        await self._store(None)
        answer = self._on_signed_out() if self._on_signed_out is not None else None
        tokens = await answer if inspect.isawaitable(answer) else answer
        if tokens is None:
            raise SignedOut("the session is over: sign in again")
        return await self._adopt(tokens)

    async def _keep_fresh(self) -> None:
        failures = 0
        while True:
            tokens = self._tokens
            left_s = _MAX_NAP_S
            if tokens is not None:
                left_s = (tokens.access_expires_at - self._clock.now()).total_seconds() - self._early_s
            if left_s > 0 or tokens is None:
                await self._clock.sleep(min(max(left_s, 0.0), _MAX_NAP_S))
                continue
            try:
                await self._await_refresh()
                failures = 0
            except Exception as error:  # noqa: BLE001  # whatever it is, it is raised to the next caller that needs a token
                failures += 1
                _log.info("the session could not be refreshed yet (%s)", type(error).__name__)
                max_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(failures, 10))
                await self._clock.sleep(jitter(max_s, at_least_s=_FIRST_DELAY_S / 2))


def _retrieve(task: asyncio.Task[SessionTokens]) -> None:
    # If every caller was cancelled, nobody else retrieves its exception, and asyncio would log that.
    if not task.cancelled():
        task.exception()
