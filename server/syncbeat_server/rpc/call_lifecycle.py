"""Tracks one call from its first byte to its status: request id, headers, metrics, and how it ends in an error."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from syncbeat_server.auth.tokens.bearer import Bearer
from syncbeat_server.errors import SyncbeatError, TokenFault, TokenRefused
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.rpc.admission import Admission
from syncbeat_server.rpc.errors import STATUS, abort
from syncbeat_server.rpc.fastpath.received_metadata import metadata_of

Context = grpc.aio.ServicerContext[bytes, bytes]

_log = logging.getLogger(__name__)

_MAX_REQUEST_ID = 128
# For calls that bring no id: unlike the ids of any other process, and cheaper than random ones.
_PROCESS_ID = os.urandom(6).hex()
_sequence = itertools.count(1)


@dataclass(frozen=True, slots=True)
class CallMeters:
    """The meters that all calls of one method report to.

    `monotonic` returns seconds, `record` takes status code and seconds of a call that ended, `admission` counts the
    calls in flight, `token_refused` takes the cause.
    """

    monotonic: Callable[[], float]
    record: Callable[[str, float], None]
    admission: Admission
    token_refused: Callable[[TokenFault], None]


class CallLifecycle:
    """The state of one call: made when it arrives, told once how it ends.

    `authorization` holds the values of that metadata key; a binary one counts as empty. `bearer` is its token, once it
    was parsed. `started_s` is the monotonic time that its duration counts from.
    """

    __slots__ = ("_admitted", "_meters", "authorization", "bearer", "context", "request_id", "started_s")

    def __init__(self, meters: CallMeters, context: Context) -> None:
        self.context = context
        self.authorization: list[str] = []
        self.bearer: Bearer | None = None
        self.request_id = ""
        self.started_s = meters.monotonic()
        self._meters = meters
        self._admitted = False
        for key, value in metadata_of(context):
            if key == "authorization":
                self.authorization.append(value if isinstance(value, str) else "")
            elif key == "x-request-id" and not self.request_id and isinstance(value, str):
                self.request_id = value if len(value) <= _MAX_REQUEST_ID else ""
        if not self.request_id:
            self.request_id = f"{_PROCESS_ID}{next(_sequence):08x}"
        logged_request_id.set(self.request_id)

    def enter(self) -> None:
        """Count the call as in flight from here on."""
        self._admitted = True
        self._meters.admission.enter()

    def leave(self) -> None:
        """Count the call as in flight no longer, if it was."""
        if self._admitted:
            self._admitted = False
            self._meters.admission.leave()

    async def fail(self, error: BaseException) -> None:
        """Record the error, and abort the call with its status, which raises; a cancelled call has no status left."""
        if isinstance(error, TokenRefused) and error.fault is not None:
            self._report_refusal(error, error.fault)
        try:
            if isinstance(error, Exception):
                await abort(self.context, error, self.request_id)
        finally:
            self.record(_code_of(error))

    def _report_refusal(self, error: TokenRefused, fault: TokenFault) -> None:
        # For the operator, who has the log; the caller learns no more than the reason. `fault` bounds these lines.
        self._meters.token_refused(fault)
        of_issuer = {"issuer": error.issuer} if error.issuer else {}
        _log.info("a token was refused", extra={"fault": fault, "detail": error.detail, **of_issuer})

    def record(self, code: str = "OK") -> None:
        """Record the code of the ended call and the seconds it took."""
        self._meters.record(code, self._meters.monotonic() - self.started_s)


def _code_of(error: BaseException) -> str:
    if isinstance(error, SyncbeatError):
        return STATUS[error.reason].name
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"
