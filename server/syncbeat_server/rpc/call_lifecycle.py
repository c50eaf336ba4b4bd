"""Tracks one call from its first byte to its status: request id, headers, metrics, and how it ends in an error."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import grpc

from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.rpc.admission import Admission
from syncbeat_server.rpc.errors import STATUS, abort
from syncbeat_server.rpc.fastpath.received_metadata import metadata_of

Context = grpc.aio.ServicerContext[bytes, bytes]

DEFAULT_DEADLINE_S = 10.0
"""The seconds after which a call ends that has no deadline of its own, or a longer one."""

ANSWER_MARGIN_S = 0.02
"""The seconds before a call's deadline at which its work ends, so that the answer that says so reaches the caller."""
_MAX_REQUEST_ID = 128
# For calls that bring no id: unlike the ids of any other process, and cheaper than random ones.
_PROCESS_ID = os.urandom(6).hex()
_sequence = itertools.count(1)


@dataclass(frozen=True, slots=True)
class CallMeters:
    """The meters that all calls of one method report to.

    `monotonic` returns seconds, `record` takes status code and seconds of a call that ended, `admission` counts the
    calls in flight.
    """

    monotonic: Callable[[], float]
    record: Callable[[str, float], None]
    admission: Admission


class CallLifecycle:
    """The state of one call: made when its request is there, told once how it ends.

    `authorization` holds the values of that metadata key; a binary one counts as empty. `started_s` is the monotonic
    time that its duration counts from. Both the values and `request_id` are there from `enter` on.
    """

    __slots__ = (
        "_admitted",
        "_metadata",
        "_meters",
        "_recorded",
        "authorization",
        "context",
        "request_id",
        "started_s",
    )

    def __init__(self, meters: CallMeters, context: Context, started_s: float) -> None:
        self.context = context
        self.authorization: list[str] = []
        self.request_id = ""
        self.started_s = started_s
        self._metadata = metadata_of(context)
        self._meters = meters
        self._admitted = self._recorded = False

    def enter(self) -> None:
        """Read the call's headers, and count it as in flight from here on."""
        self._read_headers()
        self._admitted = True
        self._meters.admission.enter()

    def left_s(self) -> float:
        """Return the seconds left until the call's deadline, less the time that the answer takes to the caller."""
        own_s = DEFAULT_DEADLINE_S - (self._meters.monotonic() - self.started_s)
        left_s = cast(float | None, self.context.time_remaining())
        return own_s if left_s is None else min(own_s, left_s - ANSWER_MARGIN_S)

    def leave(self) -> None:
        """Count the call as in flight no longer, if it was."""
        if self._admitted:
            self._admitted = False
            self._meters.admission.leave()

    async def fail(self, error: BaseException) -> None:
        """Record the error, and abort the call with its status, which raises; a cancelled call has no status left."""
        self.leave()
        try:
            if isinstance(error, Exception):
                if not self.request_id:
                    self._read_headers()
                await abort(self.context, error, self.request_id)
        finally:
            self.record(_code_of(error))

    def record(self, code: str = "OK") -> None:
        """Record the code of the ended call and the seconds it took, unless it was recorded before."""
        self.leave()
        if not self._recorded:
            self._recorded = True
            self._meters.record(code, self._meters.monotonic() - self.started_s)

    def _read_headers(self) -> None:
        for key, value in self._metadata:
            if key == "authorization":
                self.authorization.append(value if isinstance(value, str) else "")
            elif key == "x-request-id" and not self.request_id and isinstance(value, str):
                self.request_id = value if len(value) <= _MAX_REQUEST_ID else ""
        if not self.request_id:
            self.request_id = f"{_PROCESS_ID}{next(_sequence):08x}"
        logged_request_id.set(self.request_id)


def _code_of(error: BaseException) -> str:
    if isinstance(error, SyncbeatError):
        return STATUS[error.reason].name
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"
