"""What surrounds every call: request id, metrics, errors, deadline, auth, parsing, validation: in order.

One adapter serves both arities. The wrapped handler of each method is made once, at start. Request bytes are parsed
here and not by gRPC, whose raising deserializer would answer UNKNOWN with the parser's text.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat_server.auth.bearer import Bearer, bearer_of
from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.clock import Clock
from syncbeat_server.errors import DeadlineExceeded, FieldViolation, InvalidRequest, SyncbeatError
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.rpc.access import AccessPolicy
from syncbeat_server.rpc.admission import Admission, rank_of
from syncbeat_server.rpc.call import Call
from syncbeat_server.rpc.errors import STATUS, abort
from syncbeat_server.rpc.tls import certificate_names
from syncbeat_server.rpc.undecodable import undecodable_texts
from syncbeat_server.rpc.validation import Validator, acting_user_field, compile_validator

_DEFAULT_DEADLINE_S = 10.0
_MARGIN_S = 0.02  # so that the answer "no time left" still reaches the caller
_MAX_REQUEST_ID = 128
# Ids of calls that bring none: unlike those of any other process, and cheaper than random ones.
_PROCESS = os.urandom(6).hex()
_numbers = itertools.count(1)

Context = grpc.aio.ServicerContext[bytes, bytes]
Metadata = Sequence[tuple[str, str | bytes]]
Unary = Callable[[Any, Call], Awaitable[Message]]
Stream = Callable[[Any, Call], AsyncIterator[bytes]]
NOBODY = Principal(PrincipalKind.USER, "")

received_metadata: ContextVar[Metadata | None] = ContextVar("received_metadata", default=None)
"""The metadata of the call under way, where whoever found its handler had it already: gRPC decodes all of it anew each
time it is asked, which costs as much as the rest of what stands around a call."""


class Doorkeeper(Protocol):
    """Knows who calls; see `auth.service.Authenticator`."""

    def cached(self, bearer: Bearer) -> Principal | None:
        """The caller, if it is known without asking anybody."""
        ...

    async def authenticate(self, bearer: Bearer) -> Principal:
        """The caller, checked."""
        ...

    def certified(self, names: Sequence[str]) -> Principal:
        """The service whose client certificate has these names."""
        ...


class CallObserver(Protocol):
    """Told of each call that ended (the metrics hook)."""

    def counter(self, service: str, method: str) -> Callable[[str, float], None]:
        """Is told of each call of a method that ended: its code, and the seconds that it took."""
        ...


class Interceptors:
    """Makes the gRPC handler of a servicer method."""

    def __init__(self, door: Doorkeeper, observer: CallObserver, clock: Clock, admission: Admission) -> None:
        self.door = door
        self.observer = observer
        self.clock = clock
        self.admission = admission
        self.budgets = admission.budgets

    def handler(
        self, method: MethodDescriptor, policy: AccessPolicy, behaviour: Any
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler of `method`: `behaviour` is `Unary`, or `Stream` for a server stream."""
        around = _Method(self, method, policy)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(_stream(around, behaviour))
        return grpc.unary_unary_rpc_method_handler(_unary(around, behaviour))


class _Method:
    """What is known of a method before any call."""

    def __init__(self, stack: Interceptors, method: MethodDescriptor, policy: AccessPolicy) -> None:
        self.stack = stack
        self.monotonic = stack.clock.monotonic
        self.handled = stack.observer.counter(method.containing_service.full_name, method.name)
        self.policy = policy
        self.name = method.name
        self.rank = rank_of(method, policy)
        self.request_type = method.input_type
        self.request_class: type[Message] = GetMessageClass(method.input_type)
        self.validate: Validator = compile_validator(method.input_type)
        self.acting_user = acting_user_field(method.input_type)

    async def admit(self, data: bytes, around: _Around) -> tuple[Message, Call]:
        """Who is calling, may they, and what do they ask."""
        if self.policy.public:
            self.stack.admission.check(self.rank, None)
            return self.parse(data, NOBODY), Call(self.name, around.request_id, NOBODY, around.context.peer())
        door, authorization = self.stack.door, around.authorization
        if authorization:
            bearer = bearer_of(authorization)
            known = door.cached(bearer)
            self.stack.admission.check(self.rank, known)
            principal = known or await door.authenticate(bearer)
        else:
            principal = door.certified(certificate_names(around.context))
            self.stack.admission.check(self.rank, principal)
        self.policy.check(principal)
        return self.parse(data, principal), Call(self.name, around.request_id, principal)

    def parse(self, data: bytes, principal: Principal) -> Message:
        """The request message; everything that is wrong with it at once."""
        try:
            request = self.request_class.FromString(data)
        except (DecodeError, UnicodeDecodeError, ValueError, RecursionError):
            undecodable = undecodable_texts(self.request_type, data)
            whole = FieldViolation("", "these bytes are not a message of this type")
            raise InvalidRequest(*(undecodable or [whole])) from None
        violations = self.validate(request)
        acting = self.acting_user
        if acting and principal.kind is not PrincipalKind.USER and not getattr(request, acting):
            violations = [*violations, FieldViolation(acting, "required when a service calls")]
        if violations:
            raise InvalidRequest(*violations)
        return request


class _Around:
    """Request id, metrics and errors of one call: made when it starts, told how it ends.

    `authorization` holds the values of that metadata key; a binary one counts as empty.
    """

    __slots__ = ("authorization", "context", "method", "request_id", "started")

    def __init__(self, method: _Method, context: Context) -> None:
        self.method = method
        self.context = context
        self.authorization: list[str] = []
        self.request_id = ""
        self.started = method.monotonic()
        for key, value in received_metadata.get() or context.invocation_metadata() or ():
            if key == "authorization":
                self.authorization.append(value if isinstance(value, str) else "")
            elif key == "x-request-id" and not self.request_id and isinstance(value, str):
                self.request_id = value if len(value) <= _MAX_REQUEST_ID else ""
        if not self.request_id:
            self.request_id = f"{_PROCESS}{next(_numbers):08x}"
        logged_request_id.set(self.request_id)

    async def failed(self, error: BaseException) -> None:
        """End the call by an error, which becomes its status: raises, unless the call was cancelled."""
        try:
            if isinstance(error, Exception):
                await abort(self.context, error, self.request_id)
        finally:
            self.ended(_code_of(error))

    def ended(self, code: str = "OK") -> None:
        """Tell the metrics."""
        self.method.handled(code, self.method.monotonic() - self.started)


def _code_of(error: BaseException) -> str:
    if isinstance(error, SyncbeatError):
        return STATUS[error.reason].name
    return "INTERNAL" if isinstance(error, Exception) else "CANCELLED"


async def _answer(method: _Method, behaviour: Unary, data: bytes, around: _Around) -> Message:
    request, call = await method.admit(data, around)
    return await behaviour(request, call)


def _unary(method: _Method, behaviour: Unary) -> Callable[[bytes, Context], Awaitable[bytes]]:
    within = method.stack.budgets.within

    async def handle(data: bytes, context: Context) -> bytes:
        around = _Around(method, context)
        try:
            left = cast(float | None, context.time_remaining())
            budget = _DEFAULT_DEADLINE_S if left is None else min(left, _DEFAULT_DEADLINE_S) - _MARGIN_S
            if budget <= 0:
                raise DeadlineExceeded("no time left to do this")
            try:
                answer = await within(budget, _answer(method, behaviour, data, around))
            except TimeoutError:
                raise DeadlineExceeded("the work took longer than the call's deadline") from None
            serialized = answer.SerializeToString()
        except BaseException as error:
            await around.failed(error)
            raise
        around.ended()
        return serialized

    return handle


def _stream(method: _Method, behaviour: Stream) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
    async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
        around = _Around(method, context)
        try:
            try:
                request, call = await method.stack.budgets.within(_DEFAULT_DEADLINE_S, method.admit(data, around))
            except TimeoutError:
                raise DeadlineExceeded("it took too long to find out who calls") from None
            answers = behaviour(request, call)
            try:
                async for answer in answers:
                    yield answer
            finally:
                await answers.aclose()  # type: ignore[attr-defined]  # behaviours are async generators
        except BaseException as error:
            await around.failed(error)
            raise
        around.ended()

    return handle
