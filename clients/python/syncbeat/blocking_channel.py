"""A gRPC channel for threads: opened by the first call, replaced when it has become silent (ADR 84, ADR 130)."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from syncbeat.call_interceptors import fill_request
from syncbeat.retry import PUBLIC_PATHS

_log = logging.getLogger(__name__)

_MAX_SILENT_CALLS = 2  # one alone may have met a slow server
_PUBLIC = PUBLIC_PATHS

_Options: TypeAlias = Any
Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
BlockingToken = str | Callable[[], str]
"""A token, or a function that returns the present one, called in the thread of each call: let it cache."""


class _Connection:
    """A channel with connections of its own, and the calls over it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.opened_at = time.monotonic()
        self.calls = 0
        self.silent_calls = 0
        self.is_retired = False


class BlockingChannel:
    """Stands in for a `grpc.Channel`: stubs made of it add app, request id, token and deadline to each call."""

    def __init__(
        self,
        open_channel: Callable[[], grpc.Channel],
        token: BlockingToken,
        app_id: str,
        timeout_s: float,
        spacing_s: float,
    ) -> None:
        """`spacing_s` seconds lie at least between two channels that are opened because one was silent."""
        self._open_channel = open_channel
        self._token = token
        self._app_id = app_id
        self._timeout_s = timeout_s
        self._spacing_s = spacing_s
        self._lock = threading.Lock()
        self._current: _Connection | None = None
        self._pid = 0
        self._is_closed = False

    def unary_unary(self, path: str, **options: _Options) -> Callable[..., Any]:
        """Return a method with a single response, as a channel does."""

        def call(
            request: Message, timeout: float | None = None, metadata: Metadata | None = None, **how: _Options
        ) -> Any:
            filled, sent = fill_request(request, self._app_id), self._metadata(path, metadata)
            ends_after_s = self._timeout_s if timeout is None else timeout
            connection = self._acquire()
            try:
                method = connection.channel.unary_unary(path, **options)
                answer = method(filled, timeout=ends_after_s, metadata=sent, **how)
            except grpc.RpcError as error:
                self._note_end(connection, is_silent=_is_silent(error))
                raise
            else:
                self._note_end(connection, is_silent=False)
                return answer
            finally:
                self._release(connection)

        return call

    def unary_stream(self, path: str, **options: _Options) -> Callable[..., Any]:
        """Return a method with a stream of responses, as a channel does. It has no deadline unless it is given one."""

        def call(
            request: Message, timeout: float | None = None, metadata: Metadata | None = None, **how: _Options
        ) -> Any:
            filled, sent = fill_request(request, self._app_id), self._metadata(path, metadata)
            connection = self._acquire()
            stream = connection.channel.unary_stream(path, **options)(filled, timeout=timeout, metadata=sent, **how)
            if not stream.add_callback(lambda: self._release(connection)):
                self._release(connection)  # it has ended already
            return stream

        return call

    def close(self) -> None:
        """End the calls in flight and disconnect."""
        with self._lock:
            self._is_closed = True
            connection, self._current = self._current, None
        if connection is not None and self._pid == os.getpid():
            connection.channel.close()

    def _metadata(self, path: str, given: Metadata | None) -> Metadata:
        metadata = tuple(given or ())
        if path in _PUBLIC or any(key == "authorization" for key, _ in metadata):
            return metadata
        token = self._token if isinstance(self._token, str) else self._token()
        return (*metadata, ("authorization", f"Bearer {token}")) if token else metadata

    def _acquire(self) -> _Connection:
        with self._lock:
            if self._is_closed:
                raise ValueError("the client is closed")
            if self._current is None:
                self._current, self._pid = _Connection(self._open_channel()), os.getpid()
            elif self._pid != os.getpid():
                # gRPC's threads are not in the child, and a call would wait for them for ever.
                raise RuntimeError("this client made calls before the process forked: make another in the child")
            self._current.calls += 1
            return self._current

    def _release(self, connection: _Connection) -> None:
        with self._lock:
            connection.calls -= 1
            is_unused = connection.is_retired and connection.calls == 0
        if is_unused:
            connection.channel.close()

    def _note_end(self, connection: _Connection, *, is_silent: bool) -> None:
        with self._lock:
            connection.silent_calls = connection.silent_calls + 1 if is_silent else 0
            age_s = time.monotonic() - connection.opened_at
            if (
                connection.silent_calls < _MAX_SILENT_CALLS
                or age_s < self._spacing_s
                or self._current is not connection
            ):
                return
            connection.is_retired = True
            self._current = _Connection(self._open_channel())
        _log.info("the connection is silent; opening another")


def _is_silent(error: grpc.RpcError) -> bool:
    # A deadline that the server noticed comes with trailers; without any, nothing came at all.
    call: Any = error
    return call.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not call.trailing_metadata()
