"""What surrounds every call: request id, metrics, errors, deadline, auth, parsing, validation: in order.

One adapter serves both arities. The wrapped handler of each method is made once, at start. Request bytes are read
(`rpc/request_body.py`) and parsed here and not by gRPC, which waits for them for ever, and whose raising deserializer
would answer UNKNOWN with the parser's text.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat_server.auth.model import Principal, PrincipalKind, VerifiedToken
from syncbeat_server.auth.tokens.bearer import Bearer, parse_bearer
from syncbeat_server.clock import Clock
from syncbeat_server.errors import DeadlineExceeded, FieldViolation, InvalidRequest, SyncbeatError
from syncbeat_server.ops.logs import request_id as logged_request_id
from syncbeat_server.rpc.access import AccessPolicy
from syncbeat_server.rpc.admission import Admission, rank_of
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.rpc.client_address import Network, caller_address, forwarded
from syncbeat_server.rpc.errors import STATUS, abort
from syncbeat_server.rpc.fastpath.request_batcher import Together
from syncbeat_server.rpc.fastpath.shared_deadline import Budgets
from syncbeat_server.rpc.request_body import Bodies
from syncbeat_server.rpc.response_stream import Answers, Outgoing
from syncbeat_server.rpc.tls import certificate_names
from syncbeat_server.rpc.validation.field_rules import Validator, acting_user_field, compile_validator
from syncbeat_server.rpc.validation.large_requests import LARGE_BYTES, faults_aside, holds_documents
from syncbeat_server.rpc.validation.wire_format import fault_of_public, undecodable_texts
from syncbeat_server.runtime.concurrency_limit import ConcurrencyLimit
from syncbeat_server.runtime.worker_processes import RunInWorker, run_inline

_DEFAULT_DEADLINE_S = 10.0
_MARGIN_S = 0.02  # so that the answer "no time left" still reaches the caller
_MAX_REQUEST_ID = 128
# Of one caller's requests, so that its large documents leave a process to those of others.
_LARGE_AT_ONCE = 1
# Ids of calls that bring none: unlike those of any other process, and cheaper than random ones.
_PROCESS = os.urandom(6).hex()
_numbers = itertools.count(1)

Context = grpc.aio.ServicerContext[bytes, bytes]
Metadata = Sequence[tuple[str, str | bytes]]
Unary = Callable[[Any, Call], Awaitable[Message]]
AtOnce = Callable[[Any, Call], Message | None]
Asked = tuple[Message, Call]
Stream = Callable[[Any, Call], AsyncGenerator[bytes, None]]
Handled = TypeVar("Handled")
Handle: TypeAlias = "Callable[[bytes, _Around], Awaitable[Handled]]"
NOBODY = Principal(PrincipalKind.USER, "")

received_metadata: ContextVar[Metadata | None] = ContextVar("received_metadata", default=None)
"""The metadata of the call under way, where it was decoded already to find the handler: gRPC does so each time."""


class Doorkeeper(Protocol):
    """Knows who calls; see `auth.service.Authenticator`."""

    def cached(self, bearer: Bearer) -> Principal | None:
        """The caller, if it is known without asking anybody."""

    def is_cached(self, bearer: Bearer) -> bool:
        """Tell if `cached` does."""

    def try_sync(self, bearer: Bearer) -> Principal | VerifiedToken | None:
        """The caller, checked without asking anybody, or as far as that goes."""

    async def authenticate(self, bearer: Bearer, token: VerifiedToken | None = None, address: str = "") -> Principal:
        """The caller at `address`, checked; `token` is what `try_sync` returned."""

    def authenticate_certificate(self, names: Sequence[str]) -> Principal:
        """The service whose client certificate has these names."""

    async def recheck(self, principal: Principal, *, fresh: bool = True) -> None:
        """Raises when a caller whose call goes on is no longer let in."""


class CallObserver(Protocol):
    """Told of each call that ended (the metrics hook)."""

    def counter(self, service: str, method: str) -> Callable[[str, float], None]:
        """Is told of each call of a method that ended: its code, and the seconds that it took."""


class Unknown(NamedTuple):
    """The credentials of a caller who has to be asked about; its token, if found genuine already; its address."""

    bearer: Bearer
    token: VerifiedToken | None
    address: str


class Unchecked(NamedTuple):
    """A caller that may ask, and whose request is too large to be checked while others wait."""

    principal: Principal


Begun = Asked | Unknown | Unchecked


class Interceptors:
    """Makes the gRPC handler of a servicer method."""

    def __init__(
        self,
        door: Doorkeeper,
        observer: CallObserver,
        clock: Clock,
        admission: Admission,
        trusted_proxies: tuple[Network, ...] = (),
        aside: RunInWorker = run_inline,
    ) -> None:
        """`trusted_proxies`: whose `x-forwarded-for` is believed. `aside` runs the checks of large requests."""
        self.door = door
        self.observer = observer
        self.clock = clock
        self.admission = admission
        self.trusted_proxies = trusted_proxies
        self.budgets = Budgets()
        self.together = Together()
        self.aside = aside
        self.turns = ConcurrencyLimit[tuple[str, str]](_LARGE_AT_ONCE)
        self.bodies = Bodies()
        self.answers = Answers()

    def handler(
        self, method: MethodDescriptor, policy: AccessPolicy, behaviour: Any, at_once: AtOnce | None = None
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """The handler of `method`: `behaviour` is `Unary`, or `Stream` for a server stream.

        A method that can often be answered without asking anybody has `at_once`, which answers None where it cannot.
        """
        around = _Method(self, method, policy)
        if method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(_reading(around, _stream(around, behaviour)))
        return grpc.stream_unary_rpc_method_handler(_reading(around, _unary(around, behaviour, at_once)))

    def answering(
        self, method: MethodDescriptor, policy: AccessPolicy, behaviour: Unary
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        """Return the handler of a unary call whose request has been read."""
        around = _Method(self, method, policy)
        handle = _unary(around, behaviour, None)
        return lambda data, context: handle(data, _Around(around, context))


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
        self.holds_documents = holds_documents(method.input_type)

    def is_known(self, around: _Around) -> bool:
        """Tell if the caller is known without asking anybody; at a public method nobody is."""
        if self.policy.public:
            return False
        try:
            if not around.authorization:
                return bool(self.stack.door.authenticate_certificate(certificate_names(around.context)))
            around.bearer = parse_bearer(around.authorization)
            return self.stack.door.is_cached(around.bearer)
        except SyncbeatError:
            return False  # which is told once its request is there

    def begin(self, data: bytes, around: _Around) -> Begun:
        """What a caller asks that is known and may; or what it shows, where somebody has to be asked about that."""
        admission, door, authorization = self.stack.admission, self.stack.door, around.authorization
        if self.policy.public:
            admission.check(self.rank, None)
            if fault := fault_of_public(data):
                raise InvalidRequest(FieldViolation("", fault))
            request = self.message(data)
            self.check(self.validate(request), request, NOBODY)
            return request, Call(self.name, around.request_id, NOBODY, self.address(around.context))
        if not authorization:
            principal = door.authenticate_certificate(certificate_names(around.context))
            admission.check(self.rank, principal)
            return self.let_in(principal, data, around)
        bearer = around.bearer or parse_bearer(authorization)
        known = door.cached(bearer)  # anew: it may have been revoked while the request was on its way
        admission.check(self.rank, known)  # before the work of checking a signature
        found = known or door.try_sync(bearer)
        if isinstance(found, Principal):
            return self.let_in(found, data, around)
        return Unknown(bearer, found, self.address(around.context))

    def address(self, context: Context) -> str:
        """Return the address that stands for the caller in limits."""
        trusted = self.stack.trusted_proxies
        return caller_address(context.peer(), forwarded(context.invocation_metadata()) if trusted else (), trusted)

    async def admit(self, begun: Begun, data: bytes, around: _Around) -> Asked:
        """What a caller asks, once it is known and may."""
        if isinstance(begun, Unknown):
            begun = self.let_in(await self.stack.door.authenticate(*begun), data, around)
        if not isinstance(begun, Unchecked):
            return begun
        principal, request = begun.principal, self.message(data)
        async with self.stack.turns.slot((principal.app_id, principal.caller)):
            faults = await faults_aside(self.stack.aside, self.request_class, data)
        self.check(faults, request, principal)
        return request, Call(self.name, around.request_id, principal)

    def let_in(self, principal: Principal, data: bytes, around: _Around) -> Asked | Unchecked:
        """What a caller asks that is known, if it may."""
        self.policy.check(principal)
        if self.holds_documents and len(data) > LARGE_BYTES:
            return Unchecked(principal)
        request = self.message(data)
        self.check(self.validate(request), request, principal)
        return request, Call(self.name, around.request_id, principal)

    def message(self, data: bytes) -> Message:
        """The request message of these bytes."""
        try:
            return self.request_class.FromString(data)
        except (DecodeError, UnicodeDecodeError, ValueError, RecursionError):
            undecodable = undecodable_texts(self.request_type, data)
            whole = FieldViolation("", "these bytes are not a message of this type")
            raise InvalidRequest(*(undecodable or [whole])) from None

    def check(self, violations: Sequence[FieldViolation], request: Message, principal: Principal) -> None:
        """Refuse a request for `violations` of its rules, and for what its caller has to say: all of them at once."""
        acting = self.acting_user
        if acting and principal.kind is not PrincipalKind.USER and not getattr(request, acting):
            violations = [*violations, FieldViolation(acting, "required when a service calls")]
        if violations:
            raise InvalidRequest(*violations)


class _Around:
    """Request id, metrics and errors of one call: made when it starts, told how it ends.

    `authorization` holds the values of that metadata key; a binary one counts as empty.
    """

    __slots__ = ("authorization", "bearer", "context", "entered", "method", "request_id", "started")

    def __init__(self, method: _Method, context: Context) -> None:
        self.method = method
        self.context = context
        self.entered = False
        self.authorization: list[str] = []
        self.bearer: Bearer | None = None
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

    def enter(self) -> None:
        """Its turn has come: from here on it is under way."""
        self.entered = True
        self.method.stack.admission.enter()

    def leave(self) -> None:
        """It is under way no longer, if it was."""
        if self.entered:
            self.entered = False
            self.method.stack.admission.leave()

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


def _begin(method: _Method, at_once: AtOnce, data: bytes, around: _Around) -> bytes | Begun:
    """The answer, where nobody has to be asked for it; else how far it got: then the call is under way from here on."""
    logged_request_id.set(around.request_id)  # it runs in nobody's context
    around.enter()
    try:
        begun = method.begin(data, around)
        answer = None if isinstance(begun, Unknown | Unchecked) else at_once(*begun)
        if answer is None:
            return begun
        around.leave()
        return answer.SerializeToString()
    except BaseException:
        around.leave()  # now, and not when its task goes on: the rest of the row is to find room
        raise


async def _answer(method: _Method, behaviour: Unary, data: bytes, around: _Around, begun: Begun) -> bytes:
    answer = await behaviour(*await method.admit(begun, data, around))
    return answer.SerializeToString()


def _reading(method: _Method, handle: Handle[Handled]) -> Callable[[object, Context], Awaitable[Handled]]:
    """The handler that reads the request of a call first, which gRPC takes to be a stream."""
    read, is_known = method.stack.bodies.read, method.is_known

    async def read_first(_requests: object, context: Context) -> Handled:
        around = _Around(method, context)
        try:
            data = await read(context, known=is_known(around))
        except BaseException as error:
            await around.failed(error)
            raise
        around.started = method.monotonic()  # the time that a request takes to arrive is its caller's
        return await handle(data, around)

    return read_first


def _unary(method: _Method, behaviour: Unary, at_once: AtOnce | None) -> Handle[bytes]:
    within, together = method.stack.budgets.within, method.stack.together.serve

    async def handle(data: bytes, around: _Around) -> bytes:
        try:
            left = cast(float | None, around.context.time_remaining())
            budget = _DEFAULT_DEADLINE_S if left is None else min(left, _DEFAULT_DEADLINE_S) - _MARGIN_S
            if budget <= 0:
                raise DeadlineExceeded("no time left to do this")
            try:
                if at_once is None:
                    around.enter()
                    answer: bytes | Begun = method.begin(data, around)
                else:
                    answer = await together(partial(_begin, method, at_once, data, around))
                if not isinstance(answer, bytes):
                    left = budget - (method.monotonic() - around.started)
                    answer = await within(left, _answer(method, behaviour, data, around, answer))
            except TimeoutError:
                raise DeadlineExceeded("the work took longer than the call's deadline") from None
            finally:
                around.leave()
        except BaseException as error:
            await around.failed(error)
            raise
        around.ended()
        return answer

    return handle


def _stream(method: _Method, behaviour: Stream) -> Handle[None]:
    within, sending, recheck = method.stack.budgets.within, method.stack.answers, method.stack.door.recheck

    async def handle(data: bytes, around: _Around) -> None:
        try:
            around.enter()
            try:
                begun = method.begin(data, around)
                request, call = await within(_DEFAULT_DEADLINE_S, method.admit(begun, data, around))
            except TimeoutError:
                raise DeadlineExceeded("it took too long to find out who calls") from None
            finally:
                around.leave()
            # What is kept of the caller's standing will do: a revocation ends that.
            check = partial(recheck, call.principal, fresh=False)
            await sending.send(Outgoing(around.context, check), behaviour(request, call))
        except BaseException as error:
            await around.failed(error)
            raise
        around.ended()

    return handle
