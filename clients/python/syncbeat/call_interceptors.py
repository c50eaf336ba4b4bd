"""Adds the token, a deadline, the app and a request id to every call, and repeats one whose token has expired."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from syncbeat.connections import Connection
from syncbeat.errors import explain
from syncbeat.retry import PUBLIC_PATHS
from syncbeat.session import Session
from syncbeat.v1.error_reason_pb2 import ErrorReason

Token = str | Callable[[], str | Awaitable[str]] | Session
"""A token, a function that returns the present one, or a user's session, which keeps its own fresh.

The function is called for each call and each attempt of a stream: let it cache.
"""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class CallDefaults:
    """The token, app and deadline of calls that have none of their own."""

    def __init__(self, token: str | Callable[[], str | Awaitable[str]], app_id: str, timeout_s: float) -> None:
        self._token = token
        self._app_id = app_id
        self.timeout_s = timeout_s

    async def details(self, given: grpc.aio.ClientCallDetails, timeout_s: float | None) -> grpc.aio.ClientCallDetails:
        """Return the details of a call with deadline and token, unless it has its own."""
        metadata = grpc.aio.Metadata(*(given.metadata or ()))
        if _path(given) not in PUBLIC_PATHS and all(key != "authorization" for key, _ in metadata):
            token = await self._current_token()
            if token:
                metadata.add("authorization", f"Bearer {token}")
        return grpc.aio.ClientCallDetails(
            given.method,
            timeout_s if given.timeout is None else given.timeout,
            metadata,
            given.credentials,
            given.wait_for_ready,
        )

    def request(self, given: _Request) -> _Request:
        """Return the request with app and request_id; see `fill_request`."""
        return fill_request(given, self._app_id)

    async def _current_token(self) -> str:
        if isinstance(self._token, str):
            return self._token
        answer = self._token()
        if isinstance(answer, str):
            return answer
        async with asyncio.timeout(self.timeout_s):
            return await answer


def fill_request(given: _Request, app_id: str) -> _Request:
    """Return the request with app and request_id; one that lacks either is copied, never changed."""
    if not isinstance(given, Message):
        return given
    missing = {
        name: value
        for name, value in (("app_id", app_id), ("request_id", uuid.uuid4().hex))
        if value and name in given.DESCRIPTOR.fields_by_name and not getattr(given, name)
    }
    if not missing:
        return given
    filled = type(given)()
    filled.CopyFrom(given)
    for name, value in missing.items():
        setattr(filled, name, value)
    return filled


def _path(details: grpc.aio.ClientCallDetails) -> str:
    method: str | bytes = details.method  # the types say str, the library hands over bytes
    return method.decode() if isinstance(method, bytes) else method


class UnaryInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the defaults to unary calls, and repeats one that was refused for an expired token of a session."""

    def __init__(self, defaults: CallDefaults, session: Session | None, connection: Connection) -> None:
        self._defaults = defaults
        self._session = session
        self._connection = connection

    async def intercept_unary_unary(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request], Awaitable[grpc.aio.UnaryUnaryCall[_Request, _Response]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> grpc.aio.UnaryUnaryCall[_Request, _Response]:
        """Make a call; see the class."""
        details = await self._defaults.details(client_call_details, self._defaults.timeout_s)
        filled = self._defaults.request(request)
        call = await continuation(details, filled)
        call.add_done_callback(self._connection.ended)
        refused = _bearer(details)
        if self._session is None or not refused or not await _has_expired(call):
            return call
        # A refused call did nothing: it is made once more, with a new token.
        await self._session.renew(refused)
        details = await self._defaults.details(client_call_details, self._defaults.timeout_s)
        call = await continuation(details, filled)
        call.add_done_callback(self._connection.ended)
        return call


def _bearer(details: grpc.aio.ClientCallDetails) -> str:
    for key, value in details.metadata or ():
        if key == "authorization" and isinstance(value, str):
            return value.removeprefix("Bearer ")
    return ""


async def _has_expired(call: grpc.aio.UnaryUnaryCall[_Request, _Response]) -> bool:
    if await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
        return False
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return explain(error).reason == ErrorReason.ERROR_REASON_TOKEN_EXPIRED
    return False


class StreamInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    """Adds the defaults to streams, without a deadline."""

    def __init__(self, defaults: CallDefaults) -> None:
        self._defaults = defaults

    async def intercept_unary_stream(
        self,
        continuation: Callable[
            [grpc.aio.ClientCallDetails, _Request], Awaitable[grpc.aio.UnaryStreamCall[_Request, _Response]]
        ],
        client_call_details: grpc.aio.ClientCallDetails,
        request: _Request,
    ) -> grpc.aio.UnaryStreamCall[_Request, _Response]:
        """Open a stream; see the class."""
        details = await self._defaults.details(client_call_details, None)
        return await continuation(details, self._defaults.request(request))
