"""A user's session on a device: keeps its access token fresh, and never spends a refresh token twice at once."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import grpc

from syncbeat.errors import explain
from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1.error_reason_pb2 import ErrorReason

if TYPE_CHECKING:
    from syncbeat.v1.auth_service_pb2_grpc import AuthServiceAsyncStub

_log = logging.getLogger(__name__)

_EARLY_S, _JITTER_S = 300.0, 60.0
_HALF = 0.5
_TOO_LATE_S = 5.0  # a token that ends while the call is on its way is of no use
_LOOK_EVERY_S = 30.0  # timers stand still while a device sleeps, its clock does not
_ATTEMPT_S = 10.0
_FIRST_DELAY_S, _MAX_DELAY_S = 1.0, 60.0
_DEAD = frozenset(
    {
        ErrorReason.ERROR_REASON_TOKEN_INVALID,
        ErrorReason.ERROR_REASON_TOKEN_EXPIRED,
        ErrorReason.ERROR_REASON_TOKEN_REVOKED,
    }
)


class SignedOut(Exception):
    """There is no session any more: its user has to sign in again."""


@dataclass(frozen=True)
class SessionTokens:
    """The tokens of a session, as CreateSession and RefreshSession answer them. Its text form shows none of them."""

    session_id: str
    access_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_expires_at: datetime

    @classmethod
    def of(cls, answer: pb.CreateSessionResponse | pb.RefreshSessionResponse) -> Self:
        """The tokens of an answer."""
        return cls(
            session_id=answer.session_id,
            access_token=answer.access_token,
            access_expires_at=answer.access_expire_time.ToDatetime(UTC),
            refresh_token=answer.refresh_token,
            refresh_expires_at=answer.refresh_expire_time.ToDatetime(UTC),
        )

    def to_json(self) -> str:
        """What to keep on the device, where only the app can read it."""
        return json.dumps(
            {
                "session_id": self.session_id,
                "access_token": self.access_token,
                "access_expires_at": self.access_expires_at.isoformat(),
                "refresh_token": self.refresh_token,
                "refresh_expires_at": self.refresh_expires_at.isoformat(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What was kept. Raises ValueError, KeyError or TypeError for anything else."""
        kept = json.loads(text)
        for name in ("access_expires_at", "refresh_expires_at"):
            kept[name] = datetime.fromisoformat(kept[name])
        return cls(**kept)


class SessionStorage(Protocol):
    """Where a session's tokens are kept between runs of the app."""

    async def load(self) -> str | None:
        """What was saved last; None when there is nothing."""
        ...

    async def save(self, text: str | None) -> None:
        """Keep this from now on; None: forget it."""
        ...


class SessionClock(Protocol):
    """Where a session takes the time from."""

    def now(self) -> datetime:
        """The present moment, time-zone aware."""
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
"""Told that the session is over. New tokens, from signing in again, are used from then on."""


class Session:
    """Give it to `SyncbeatClient(address, token=session)`, whose calls and streams then carry a fresh token.

    The token is renewed 5 to 6 minutes before it ends (a short-lived one at half of its life), in the background and
    whenever it is asked for; a token that the server finds expired is renewed once and the call repeated. However many
    tasks ask, one refresh is under way, and its tokens are stored before anybody gets them.
    """

    def __init__(
        self,
        tokens: SessionTokens | None = None,
        *,
        storage: SessionStorage | None = None,
        on_signed_out: OnSignedOut | None = None,
        clock: SessionClock | None = None,
    ) -> None:
        """Without `tokens` those in `storage` are used."""
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
        self._draw()

    def bind(self, auth: AuthServiceAsyncStub) -> None:
        """Refresh over this service from now on; the client it is given to does that."""
        self._auth = auth

    async def token(self) -> str:
        """The access token, good for some seconds more at least.

        Raises:
            SignedOut: there is no session any more.
            grpc.aio.AioRpcError: the token is over and could not be renewed now.
        """
        await self._open()
        tokens = self._present()
        left_s = (tokens.access_expires_at - self._clock.now()).total_seconds()
        if left_s <= _TOO_LATE_S:
            tokens = await self._renewed()
        elif left_s <= self._early_s:
            self._start()
        if self._unsaved:
            await self._save(tokens)
        return tokens.access_token

    async def renew(self, refused: str) -> str:
        """A token in the place of one that the server found expired; another task may have got it already."""
        await self._open()
        tokens = self._present()
        if tokens.access_token == refused:
            tokens = await self._renewed()
        return tokens.access_token

    async def renew_after_stream(self, opened_at: float) -> None:
        """As `renew`, for a stream that was opened at a moment (monotonic) and found expired by the server."""
        if self._adopted_at < opened_at:
            await self._open()
            await self._renewed()

    async def sign_out(self) -> None:
        """End the session on the server, if that can be reached, and forget it here."""
        await self._open()
        tokens, auth = self._tokens, self._auth
        if tokens is not None and auth is not None:
            request = pb.RevokeSessionRequest(session_id=tokens.session_id)
            metadata = (("authorization", f"Bearer {tokens.access_token}"),)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await auth.RevokeSession(request, timeout=_ATTEMPT_S, metadata=metadata)
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

    def _present(self) -> SessionTokens:
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
                _log.warning("what was stored is no session: it is not used")
        self._draw()

    def _draw(self) -> None:
        # Devices that signed in together are not to refresh together.
        self._early_s = _EARLY_S + random.uniform(0.0, _JITTER_S)  # noqa: S311  # not a secret
        if self._tokens is not None:
            life_s = (self._tokens.access_expires_at - self._clock.now()).total_seconds()
            self._early_s = min(self._early_s, max(0.0, life_s) * _HALF)

    def _start(self) -> asyncio.Task[SessionTokens]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._refresh())
            self._refreshing.add_done_callback(_retrieved)
        return self._refreshing

    async def _renewed(self) -> SessionTokens:
        # A caller that gives up takes the refresh from nobody else.
        return await asyncio.shield(self._start())

    async def _refresh(self) -> SessionTokens:
        if self._auth is None:
            raise RuntimeError("a session needs a client: SyncbeatClient(address, token=session)")
        request = pb.RefreshSessionRequest(refresh_token=self._present().refresh_token)
        try:
            # An answer that is lost is asked for again with the same token, and is the same.
            answer = await self._auth.RefreshSession(request, timeout=_ATTEMPT_S)
        except grpc.aio.AioRpcError as error:
            if explain(error).reason not in _DEAD:
                raise
            return await self._signed_out()
        return await self._adopt(SessionTokens.of(answer))

    async def _adopt(self, tokens: SessionTokens) -> SessionTokens:
        # In memory first: the old refresh token is spent, whatever becomes of the storage.
        self._tokens, self._unsaved, self._adopted_at = tokens, True, time.monotonic()
        self._draw()
        await self._save(tokens)
        return tokens

    async def _save(self, tokens: SessionTokens) -> None:
        await self._store(tokens.to_json())
        self._unsaved = False

    async def _store(self, text: str | None) -> None:
        if self._storage is not None:
            await self._storage.save(text)

    async def _signed_out(self) -> SessionTokens:
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
            left_s = _LOOK_EVERY_S
            if tokens is not None:
                left_s = (tokens.access_expires_at - self._clock.now()).total_seconds() - self._early_s
            if left_s > 0 or tokens is None:
                await self._clock.sleep(min(max(left_s, 0.0), _LOOK_EVERY_S))
                continue
            try:
                await self._renewed()
                failures = 0
            except Exception as error:  # noqa: BLE001  # whatever it is, whoever asks for a token is told
                failures += 1
                _log.info("the session could not be refreshed yet (%s)", type(error).__name__)
                longest_s = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(failures, 10))
                await self._clock.sleep(random.uniform(_FIRST_DELAY_S / 2, longest_s))  # noqa: S311  # not a secret


def _retrieved(task: asyncio.Task[SessionTokens]) -> None:
    # Where every caller has gone, nobody else asks what became of it.
    if not task.cancelled():
        task.exception()
