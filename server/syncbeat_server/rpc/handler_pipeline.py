"""Builds the gRPC handler of each method: read, check, answer within the deadline, record.

The handlers are made once, at start. Every method takes its request as a stream of bytes, which `request_body` reads
and `request_checks` parses: gRPC itself would wait for a request for ever, and answer UNKNOWN with the parser's text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from syncbeat_server.auth.service import Authenticator
from syncbeat_server.clock import Clock
from syncbeat_server.errors import DeadlineExceeded, TokenFault
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.rpc.access import AccessPolicy
from syncbeat_server.rpc.admission import Admission
from syncbeat_server.rpc.call_context import Call, TrySync
from syncbeat_server.rpc.call_lifecycle import CallLifecycle, CallMeters, Context
from syncbeat_server.rpc.client_address import Network
from syncbeat_server.rpc.fastpath.request_batcher import RequestBatcher
from syncbeat_server.rpc.fastpath.shared_deadline import SharedDeadlines
from syncbeat_server.rpc.request_body import RequestReader
from syncbeat_server.rpc.request_checks import CheckedRequest, PendingAuth, PendingValidation, RequestChecks
from syncbeat_server.rpc.response_stream import ResponseStreams, StreamedCall
from syncbeat_server.rpc.validation.large_requests import LargeRequestValidator
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline

_DEFAULT_DEADLINE_S = 10.0
_MARGIN_S = 0.02  # so that the answer "no time left" still reaches the caller
_PENDING = (PendingAuth, PendingValidation)  # a union in its place would be built for each call

Unary = Callable[[Any, Call], Awaitable[Message]]
Stream = Callable[[Any, Call], AsyncGenerator[bytes, None]]
Handled = TypeVar("Handled")
Handle = Callable[[bytes, CallLifecycle], Awaitable[Handled]]


class CallObserver(Protocol):
    """Counts the calls that ended, and the tokens that were refused (`ops.metrics`)."""

    def counter(self, service: str, method: str) -> Callable[[str, float], None]:
        """Return what counts each ended call of a method: its status code, and the seconds it took."""

    def token_refused(self, cause: TokenFault) -> None:
        """Count a refused token."""


class HandlerPipeline:
    """Wraps servicer methods into gRPC handlers, which share readers, batches and deadlines."""

    def __init__(
        self,
        authenticator: Authenticator,
        observer: CallObserver,
        clock: Clock,
        admission: Admission,
        trusted_proxies: tuple[Network, ...] = (),
        run_in_child: RunInWorker = run_inline,
    ) -> None:
        """`trusted_proxies` are the networks whose `x-forwarded-for` is believed; `run_in_child` runs the validation
        of large requests."""
        self.admission = admission
        self.observer = observer
        self.batcher = RequestBatcher()
        self.requests = RequestReader()
        self.response_streams = ResponseStreams()
        self._authenticator = authenticator
        self._clock = clock
        self._trusted_proxies = trusted_proxies
        self._large_requests = LargeRequestValidator(run_in_child)
        self._deadlines = SharedDeadlines()

    def handler(
        self, method: MethodDescriptor, policy: AccessPolicy, behaviour: Any, try_sync: TrySync | None = None
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler of `method`; `behaviour` is `Unary`, or `Stream` for a server stream.

        A method that can often be answered from memory has `try_sync` for that, whose calls are served in batches.
        """
        checks, meters = self._checks(method, policy), self._meters(method)
        if method.server_streaming:
            stream = self._stream(checks, behaviour)
            return grpc.stream_stream_rpc_method_handler(self._read_first(checks, meters, stream))
        unary = self._unary(checks, meters, behaviour, try_sync)
        return grpc.stream_unary_rpc_method_handler(self._read_first(checks, meters, unary))

    def unary_handler(
        self, method: MethodDescriptor, policy: AccessPolicy, behaviour: Unary
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """Return the handler of a unary method whose request has already been read."""
        meters = self._meters(method)
        handle = self._unary(self._checks(method, policy), meters, behaviour, None)
        return lambda data, context: handle(data, CallLifecycle(meters, context))

    def _checks(self, method: MethodDescriptor, policy: AccessPolicy) -> RequestChecks:
        return RequestChecks(
            self._authenticator, self.admission, self._trusted_proxies, self._large_requests, method, policy
        )

    def _meters(self, method: MethodDescriptor) -> CallMeters:
        record = self.observer.counter(method.containing_service.full_name, method.name)
        return CallMeters(self._clock.monotonic, record, self.admission, self.observer.token_refused)

    def _read_first(
        self, checks: RequestChecks, meters: CallMeters, handle: Handle[Handled]
    ) -> Callable[[object, Context], Awaitable[Handled]]:
        read, is_caller_known, monotonic = self.requests.read, checks.is_caller_known, meters.monotonic

        async def read_first(_requests: object, context: Context) -> Handled:
            call = CallLifecycle(meters, context)
            try:
                data = await read(context, known=is_caller_known(call))
            except BaseException as error:
                await call.fail(error)
                raise
            call.started_s = monotonic()  # the time that a request takes to arrive is its caller's
            return await handle(data, call)

        return read_first

    def _unary(
        self, checks: RequestChecks, meters: CallMeters, behaviour: Unary, try_sync: TrySync | None
    ) -> Handle[bytes]:
        within, serve_in_batch, monotonic = self._deadlines.within, self.batcher.serve, meters.monotonic

        async def handle(data: bytes, call: CallLifecycle) -> bytes:
            try:
                left_s = cast(float | None, call.context.time_remaining())
                budget_s = _DEFAULT_DEADLINE_S if left_s is None else min(left_s, _DEFAULT_DEADLINE_S) - _MARGIN_S
                if budget_s <= 0:
                    raise DeadlineExceeded("no time left to do this")
                try:
                    if try_sync is None:
                        call.enter()
                        answer: bytes | CheckedRequest = checks.check(data, call)
                    else:
                        answer = await serve_in_batch(partial(_try_answer, checks, try_sync, data, call))
                    if not isinstance(answer, bytes):
                        left_s = budget_s - (monotonic() - call.started_s)
                        answer = await within(left_s, _answer(checks, behaviour, data, call, answer))
                except TimeoutError:
                    raise DeadlineExceeded("the work took longer than the call's deadline") from None
                finally:
                    call.leave()
            except BaseException as error:
                await call.fail(error)
                raise
            call.record()
            return answer

        return handle

    def _stream(self, checks: RequestChecks, behaviour: Stream) -> Handle[None]:
        within, send, recheck = self._deadlines.within, self.response_streams.send, self._authenticator.recheck

        async def handle(data: bytes, call: CallLifecycle) -> None:
            try:
                call.enter()
                try:
                    checked = checks.check(data, call)
                    request, context = await within(_DEFAULT_DEADLINE_S, checks.complete(checked, data, call))
                except TimeoutError:
                    raise DeadlineExceeded("it took too long to find out who calls") from None
                finally:
                    call.leave()
                # The cached account status will do: a revocation invalidates it.
                check = partial(recheck, context.principal, fresh=False)
                await send(StreamedCall(call.context, check), behaviour(request, context))
            except BaseException as error:
                await call.fail(error)
                raise
            call.record()

        return handle


def _try_answer(checks: RequestChecks, try_sync: TrySync, data: bytes, call: CallLifecycle) -> bytes | CheckedRequest:
    """Return the answer if nothing has to be awaited for it, else how far the checks got: then it is in flight."""
    logged_request_id.set(call.request_id)  # a batch runs outside the call's context
    call.enter()
    try:
        checked = checks.check(data, call)
        answer = None if isinstance(checked, _PENDING) else try_sync(*checked)
        if answer is None:
            return checked
        call.leave()
        return answer.SerializeToString()
    except BaseException:
        call.leave()  # now, not when its task goes on, so that the rest of the batch finds room
        raise


async def _answer(
    checks: RequestChecks, behaviour: Unary, data: bytes, call: CallLifecycle, checked: CheckedRequest
) -> bytes:
    answer = await behaviour(*await checks.complete(checked, data, call))
    return answer.SerializeToString()
