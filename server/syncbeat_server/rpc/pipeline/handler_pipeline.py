"""Builds the gRPC handler of each method: read, check, answer within the deadline, record.

The handlers are made once, at start. Every method takes its request as a stream of bytes, which `request_body` reads
and `request_checks` parses: gRPC itself would wait for a request for ever, and answer UNKNOWN with the parser's text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from syncbeat_server.audit.policy.coverage import AUDITED
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.clock import Clock, SystemClock
from syncbeat_server.errors import DeadlineExceeded, DependencyDown, TokenFault
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.ops.metrics.rpc import MethodCalls
from syncbeat_server.ops.tracing.spans import Tracer
from syncbeat_server.ops.work_origin import work_origin
from syncbeat_server.resilience.retry import Retry
from syncbeat_server.rpc.fastpath.request_batcher import RequestBatcher
from syncbeat_server.rpc.fastpath.shared_deadline import SharedDeadlines
from syncbeat_server.rpc.pipeline.access import AccessPolicy
from syncbeat_server.rpc.pipeline.audited_calls import AuditedRequestChecks
from syncbeat_server.rpc.pipeline.call_context import Call, TrySync
from syncbeat_server.rpc.pipeline.call_lifecycle import DEFAULT_DEADLINE_S, CallLifecycle, CallMeters, Context
from syncbeat_server.rpc.pipeline.call_limits import CallLimits, MethodLimits
from syncbeat_server.rpc.pipeline.call_spans import in_own_context, traced
from syncbeat_server.rpc.pipeline.client_address import Network
from syncbeat_server.rpc.pipeline.load_shedding import Admission
from syncbeat_server.rpc.pipeline.request_body import RequestReader
from syncbeat_server.rpc.pipeline.request_checks import (
    CheckedRequest,
    PendingChecks,
    ReadyCall,
    RequestChecks,
)
from syncbeat_server.rpc.pipeline.unread_streams import ResponseStreams, StreamedCall
from syncbeat_server.rpc.validation.large_requests import LargeRequestValidator
from syncbeat_server.runtime.deadline import ends_at, set_deadline, time_left_s
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline

Unary = Callable[[Any, Call], Coroutine[Any, Any, Message]]
Stream = Callable[[Any, Call], AsyncGenerator[bytes, None]]
Answer = TypeVar("Answer")
Within = Callable[[float, Coroutine[Any, Any, ReadyCall]], Awaitable[ReadyCall]]
Handler = Callable[[object, Context], Awaitable[Answer]]
Run = Callable[[Callable[[], Awaitable[Any]]], Coroutine[Any, Any, Any]]
"""Does work that may be done twice (`Retry.run`)."""


class CallObserver(Protocol):
    """Counts the calls that ended, and the tokens that were refused (`ops.metrics`)."""

    def calls(self, service: str, method: str, grpc_type: str) -> MethodCalls:
        """Return what counts the calls of a method: those that began, and each that ended."""

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
        self.limits: CallLimits | None = None
        """The limits of apps, which handlers made from then on hold their calls against; None: there are none."""
        self.tracer: Tracer | None = None
        """What starts the spans of calls, for handlers made from then on; None: they are exported nowhere."""
        self.trace_callers = False
        """True: these spans are below the trace contexts that callers send."""
        self.observer = observer
        self.batcher = RequestBatcher()
        self.requests = RequestReader()
        self.response_streams = ResponseStreams()
        self._authenticator = authenticator
        self._clock = clock
        self._trusted_proxies = trusted_proxies
        self._large_requests = LargeRequestValidator(run_in_child)
        self._deadlines = SharedDeadlines()
        self._retry = Retry(clock, lambda: admission.counts.started)

    def handler(
        self, method: MethodDescriptor, policy: AccessPolicy, behaviour: Any, try_sync: TrySync | None = None
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Return the handler of `method`; `behaviour` is `Unary`, or `Stream` for a server stream.

        A method that can often be answered from memory has `try_sync` for that, whose calls are served in batches.
        """
        checks, meters = self._checks(method, policy), self._meters(method)
        if method.server_streaming:
            streamed = self._traced(method, self._stream(checks, meters, behaviour))
            return grpc.stream_stream_rpc_method_handler(streamed)
        repeated = self._repeated(method, behaviour)
        if try_sync is not None:
            serve = self._batched(checks, meters, repeated, try_sync)
        else:
            serve = self._unary(checks, meters, behaviour, repeated)
        return grpc.stream_unary_rpc_method_handler(self._traced(method, serve))

    def _traced(self, method: MethodDescriptor, serve: Handler[Answer]) -> Handler[Answer]:
        if self.tracer is None:
            return serve
        return traced(serve, self.tracer, method, below_callers=self.trace_callers)

    def _checks(self, method: MethodDescriptor, policy: AccessPolicy) -> RequestChecks:
        kind = AuditedRequestChecks if method.name in AUDITED else RequestChecks
        checks = kind(
            self._authenticator, self.admission.of(method), self._trusted_proxies, self._large_requests, method, policy
        )
        if self.limits is not None and not policy.public:
            checks.limits = MethodLimits(self.limits, method)
        return checks

    def _repeated(self, method: MethodDescriptor, behaviour: Any) -> Any:
        """Return `behaviour`, which is repeated where the contract says that it may be and the database failed."""
        run, level = self._retry.run, method.GetOptions().idempotency_level
        if level == MethodOptions.IDEMPOTENCY_UNKNOWN:
            return behaviour

        async def serve(request: Any, call: Call) -> Message:
            answer: Message = await run(partial(behaviour, request, call))
            return answer

        return serve

    def _meters(self, method: MethodDescriptor) -> CallMeters:
        grpc_type = "server_stream" if method.server_streaming else "unary"
        calls = self.observer.calls(method.containing_service.full_name, method.name, grpc_type)
        record = calls.count if self.tracer is None else calls.count_traced
        counts = self.admission.of(method).counts
        return CallMeters(self._clock.monotonic, record, counts, self.observer.token_refused, calls)

    def _unary(self, checks: RequestChecks, meters: CallMeters, behaviour: Unary, repeated: Unary) -> Handler[bytes]:
        read, is_known, within = self.requests.read, checks.is_caller_known, self._deadlines.within
        run, again, monotonic = self._retry.run, self._retry.again, meters.monotonic
        system_time_s, origin = SystemClock.monotonic, checks.origin

        async def serve(_requests: object, context: Context) -> bytes:
            call = CallLifecycle(meters, context)
            try:
                data = await read(context, is_known)
                call.started_s = monotonic()
                call.enter()
                left_s, checked = call.left_s(), checks.check(data, call)
                ends_at.set(system_time_s() + left_s)
                if isinstance(checked, PendingChecks):
                    answer = await within(left_s, _answer(run, checks, repeated, data, call, checked))
                else:
                    work_origin.set(origin)
                    try:
                        message = await within(left_s, behaviour(*checked))
                    except DependencyDown as error:
                        if repeated is behaviour:
                            raise
                        message = await within(time_left_s(), again(error, partial(behaviour, *checked)))
                    answer = message.SerializeToString()
            except BaseException as error:
                await call.fail(_deadline_exceeded(error))
                raise
            call.record()
            return answer

        return serve

    def _batched(
        self, checks: RequestChecks, meters: CallMeters, behaviour: Unary, try_sync: TrySync
    ) -> Handler[bytes]:
        """Do as `_unary`, but in a batch what can be done from memory, whose code is warm then."""
        read, is_known, within = self.requests.read, checks.is_caller_known, self._deadlines.within
        run, monotonic = self._retry.run, meters.monotonic
        in_batch = self.batcher.serve if self.tracer is None else in_own_context(self.batcher.serve)

        async def serve(_requests: object, context: Context) -> bytes:
            call = CallLifecycle(meters, context)
            try:
                data = await read(context, is_known)
                call.started_s = monotonic()
                answer = await in_batch(partial(_try_answer, checks, try_sync, data, call))
                if isinstance(answer, bytes):
                    return answer
                left_s = call.left_s(monotonic() - call.started_s)
                set_deadline(left_s)
                answer = await within(left_s, _answer(run, checks, behaviour, data, call, answer))
            except BaseException as error:
                await call.fail(_deadline_exceeded(error))
                raise
            call.record()
            return answer

        return serve

    def _stream(self, checks: RequestChecks, meters: CallMeters, behaviour: Stream) -> Handler[None]:
        read, is_known, within = self.requests.read, checks.is_caller_known, self._deadlines.within
        send, recheck, monotonic = self.response_streams.send, self._authenticator.recheck, meters.monotonic
        run = self._retry.run

        async def serve(_requests: object, context: Context) -> None:
            call = CallLifecycle(meters, context)
            try:
                data = await read(context, is_known)
                call.started_s = monotonic()
                call.enter()
                work_origin.set(checks.origin)
                try:
                    checked = checks.check(data, call)
                    completing = run(partial(checks.complete, checked, data, call))
                    request, described = await complete_in_time(within, completing)
                finally:
                    call.leave()
                # The cached account status will do: a revocation invalidates it.
                check = partial(recheck, described.principal, fresh=False)
                await send(StreamedCall(context, check), behaviour(request, described))
            except BaseException as error:
                await call.fail(error)
                raise
            call.record()

        return serve


async def complete_in_time(within: Within, checking: Coroutine[Any, Any, ReadyCall]) -> ReadyCall:
    """Return the checked call of a stream that opens. Raises DependencyDown when that takes too long.

    The time is ours and not the caller's deadline, which a stream need not have: whatever knows the caller is slow.
    """
    try:
        return await within(DEFAULT_DEADLINE_S, checking)
    except TimeoutError:
        raise DependencyDown("it took too long to find out who calls") from None


def _try_answer(checks: RequestChecks, try_sync: TrySync, data: bytes, call: CallLifecycle) -> bytes | CheckedRequest:
    """Return the answer if nothing has to be awaited for it, and record it; else how far the checks got."""
    logged_request_id.set(call.request_id)  # a batch runs outside the call's context
    call.enter()
    try:
        call.left_s()
        checked = checks.check(data, call)
        answer = None if isinstance(checked, PendingChecks) else try_sync(*checked)
        if answer is None:
            return checked
    except BaseException:
        call.leave()  # now, not when its task goes on, so that the rest of the batch finds room
        raise
    call.record()
    return answer


def _deadline_exceeded(error: BaseException) -> BaseException:
    late = isinstance(error, TimeoutError)
    return DeadlineExceeded("the work took longer than the call's deadline") if late else error


async def _answer(
    run: Run,
    checks: RequestChecks,
    behaviour: Unary,
    data: bytes,
    call: CallLifecycle,
    checked: CheckedRequest,
) -> bytes:
    work_origin.set(checks.origin)
    if isinstance(checked, PendingChecks):
        ready: ReadyCall = await run(partial(checks.complete, checked, data, call))
    else:
        ready = checked
    answer = await behaviour(*ready)
    return answer.SerializeToString()
