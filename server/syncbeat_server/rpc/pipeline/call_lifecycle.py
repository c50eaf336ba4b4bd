"""Tracks one call from its first byte to its status: request id, headers, metrics, and how it ends in an error."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from syncbeat_server.errors import DeadlineExceeded, Overloaded, SyncbeatError, TokenFault, TokenRefused
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.ops.metrics.rpc import MethodCalls
from syncbeat_server.rpc.fastpath.received_metadata import metadata_of
from syncbeat_server.rpc.pipeline.error_status import STATUS, abort
from syncbeat_server.rpc.pipeline.load_shedding import CallCounts

Context = grpc.aio.ServicerContext[bytes, bytes]

_log = logging.getLogger(__name__)

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

    `monotonic` returns seconds, `record` takes status code and seconds of a call that ended, `counts` has those being
    served, `token_refused` takes the cause, `calls` has the count of calls that began.
    """

    monotonic: Callable[[], float]
    record: Callable[[str, float], None]
    counts: CallCounts
    token_refused: Callable[[TokenFault], None]
    calls: MethodCalls


class CallLifecycle:
    """The state of one call: made when it arrives, entered when it is served, told once how it ends.

    `started_s` is the monotonic time that its duration counts from, 0 until its request is there: the time that a
    request takes to arrive is its caller's. `authorization` holds the values of that metadata key; a binary one counts
    as empty.
    """

    __slots__ = (
        "_admitted",
        "_meters",
        "_recorded",
        "authorization",
        "context",
        "request_id",
        "started_s",
    )

    def __init__(self, meters: CallMeters, context: Context) -> None:
        """Read the call's headers, and count it among those that began."""
        self.context = context
        self._meters = meters
        meters.calls.started += 1
        self.started_s = 0.0
        self._admitted = self._recorded = False
        authorization, request_id = [], ""
        for key, value in metadata_of(context):
            if key == "authorization":
                authorization.append(value if isinstance(value, str) else "")
            elif key == "x-request-id" and not request_id and isinstance(value, str):
                request_id = value if len(value) <= _MAX_REQUEST_ID else ""
        self.authorization = authorization
        self.request_id = request_id or f"{_PROCESS_ID}-{next(_sequence)}"
        logged_request_id.set(self.request_id)

    def enter(self) -> None:
        """Count the call as in flight from here on."""
        self._admitted = True
        counts = self._meters.counts
        counts.started += 1
        counts.in_flight += 1

    def left_s(self, used_s: float = 0.0) -> float:
        """Return the seconds left for a call that has used so many, less those that the answer takes to the caller.

        Raises:
            DeadlineExceeded: there are none.
        """
        remaining_s: Any = self.context.time_remaining()  # None for a call without a deadline, unlike in its type
        if remaining_s is None:
            return DEFAULT_DEADLINE_S - used_s
        left_s: float = min(remaining_s - ANSWER_MARGIN_S, DEFAULT_DEADLINE_S - used_s)
        if left_s <= 0:
            raise DeadlineExceeded("no time left to do this")
        return left_s

    def leave(self) -> None:
        """Count the call as in flight no longer, if it was."""
        if self._admitted:
            self._admitted = False
            self._meters.counts.in_flight -= 1

    async def fail(self, error: BaseException) -> None:
        """Record the error, and abort the call with its status, which raises; a cancelled call has no status left."""
        self.leave()
        if isinstance(error, TokenRefused) and error.fault is not None:
            self._report_refusal(error, error.fault)
        if isinstance(error, SyncbeatError) and not self._recorded:
            self._count_fault(error)
        try:
            if isinstance(error, Exception):
                await abort(self.context, error, self.request_id)
        finally:
            self.record(_code_of(error))

    def _count_fault(self, error: SyncbeatError) -> None:
        calls = self._meters.calls
        if isinstance(error, Overloaded):
            calls.overloaded += not error.is_callers_doing
        else:
            calls.excused += error.is_callers_doing

    def _report_refusal(self, error: TokenRefused, fault: TokenFault) -> None:
        # For the operator, who has the log; the caller learns no more than the reason. `cause` bounds these lines.
        self._meters.token_refused(fault)
        of_issuer = {"issuer": error.issuer} if error.issuer else {}
        _log.info("a token was refused", extra={"cause": fault, "detail": error.detail, **of_issuer})

    def record(self, code: str = "OK") -> None:
        """Record the code of the ended call and the seconds it took, unless it was recorded before."""
        meters = self._meters
        if self._admitted:
            self._admitted = False
            meters.counts.in_flight -= 1
        if not self._recorded:
            self._recorded = True
            meters.record(code, meters.monotonic() - self.started_s if self.started_s else 0.0)


def _code_of(error: BaseException) -> str:
    if isinstance(error, SyncbeatError):
        return STATUS[error.reason].name
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"
