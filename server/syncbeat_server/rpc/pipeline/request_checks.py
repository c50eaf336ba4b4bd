"""Turns the bytes of a request into a message that may be served.

In this order: shed load, authenticate the caller, check the method's access policy, parse, validate, hold it against
limits. Whatever is in memory is done without awaiting; the rest of it is returned as what is pending (`PendingAuth`,
`PendingValidation`, `LimitedCall`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat_server.auth.model import Principal, PrincipalKind, VerifiedToken
from syncbeat_server.auth.service import Authenticator
from syncbeat_server.auth.tokens.bearer import Bearer, parse_bearer
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest, SyncbeatError
from syncbeat_server.rpc.fastpath.compiled_validator import compile_fast_validator
from syncbeat_server.rpc.fastpath.received_metadata import metadata_of
from syncbeat_server.rpc.pipeline.access import AccessPolicy
from syncbeat_server.rpc.pipeline.call_context import Call
from syncbeat_server.rpc.pipeline.call_lifecycle import CallLifecycle, Context
from syncbeat_server.rpc.pipeline.call_limits import MethodLimits, PendingLimits
from syncbeat_server.rpc.pipeline.client_address import Network, caller_address, forwarded
from syncbeat_server.rpc.pipeline.load_shedding import Admission, criticality_of, origin_of
from syncbeat_server.rpc.tls import certificate_names
from syncbeat_server.rpc.validation.compression import GZIP_MAGIC, MAX_REQUEST_BYTES, decompress
from syncbeat_server.rpc.validation.item_bounds import excess_items, item_bounds
from syncbeat_server.rpc.validation.large_requests import LARGE_BYTES, LargeRequestValidator, holds_documents
from syncbeat_server.rpc.validation.message_validator import acting_user_field
from syncbeat_server.rpc.validation.wire_format import MAX_PUBLIC_BYTES, public_request_fault, undecodable_strings

_USER = PrincipalKind.USER  # kept, since a look-up in an enum takes as long as a call
_UNPARSABLE = (DecodeError, UnicodeDecodeError, ValueError, RecursionError)
ANONYMOUS = Principal(_USER, "")
"""The caller of a public method, which is not authenticated."""


class PendingChecks:
    """Checks of a request that await something. One class, since a call is asked for it twice: a tuple of classes takes
    three times as long."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class PendingAuth(PendingChecks):
    """A caller that has to be looked up: its bearer token, what is verified of it already, and its address."""

    bearer: Bearer
    token: VerifiedToken | None
    address: str


@dataclass(frozen=True, slots=True)
class PendingValidation(PendingChecks):
    """An authorized caller whose request is too large to be validated while other calls wait, and its octets sent."""

    principal: Principal
    data: bytes
    octets: int


ReadyCall = tuple[Message, Call]


@dataclass(frozen=True, slots=True)
class LimitedCall(PendingChecks):
    """A call that is ready but for limits that a store has to be asked for."""

    ready: ReadyCall
    pending: PendingLimits


CheckedRequest = ReadyCall | PendingAuth | PendingValidation | LimitedCall


class RequestChecks:
    """The checks of one method's requests, compiled at start."""

    def __init__(
        self,
        authenticator: Authenticator,
        admission: Admission,
        trusted_proxies: tuple[Network, ...],
        large_requests: LargeRequestValidator,
        method: MethodDescriptor,
        policy: AccessPolicy,
    ) -> None:
        """`trusted_proxies` are the networks whose `x-forwarded-for` is believed."""
        self._authenticator = authenticator
        self._admission = admission
        self._trusted_proxies = trusted_proxies
        self._large_requests = large_requests
        self._policy = policy
        self._name = method.name
        self.origin = origin_of(method)
        """Of the statements that its calls run."""
        self._criticality = criticality_of(method, policy)
        self._request_type = method.input_type
        self._request_class: type[Message] = GetMessageClass(method.input_type)
        self._from_bytes = self._request_class.FromString
        self._validate = compile_fast_validator(method.input_type)
        self._acting_user = acting_user_field(method.input_type)
        self._holds_documents = holds_documents(method.input_type)
        self._item_bounds = item_bounds(method.input_type)
        self.limits: MethodLimits | None = None
        """The limits that calls of this method are held against; None: there are none."""

    def is_caller_known(self, context: Context) -> bool:
        """Tell if the caller can be authenticated from memory, before its request is read; at a public method none is.

        Bad credentials count as unknown: they are refused once the request is there.
        """
        if self._policy.public:
            return False
        authorization = [str(value) for key, value in metadata_of(context) if key == "authorization"]
        try:
            if not authorization:
                return bool(self._authenticator.authenticate_certificate(certificate_names(context)))
            return self._authenticator.is_cached(parse_bearer(authorization))
        except SyncbeatError:
            return False

    def check(self, data: bytes, call: CallLifecycle) -> CheckedRequest:
        """Check a request as far as memory allows. Raises what the call is refused with."""
        admission, authenticator = self._admission, self._authenticator
        if self._policy.public:
            admission.check(self._criticality, None)
            data = decompress(data, MAX_PUBLIC_BYTES)
            if fault := public_request_fault(data):
                raise InvalidRequest(fault)
            request = self._parse(data)
            self._require_valid(self._validate(request), request, ANONYMOUS)
            return request, Call(self._name, call.request_id, ANONYMOUS, self._address(call.context))
        if not call.authorization:
            principal = authenticator.authenticate_certificate(certificate_names(call.context))
            admission.check(self._criticality, principal)
            return self._authorize(principal, data, call)
        bearer = parse_bearer(call.authorization)
        known = authenticator.cached(bearer)
        admission.check(self._criticality, known)  # before the work of verifying a signature
        if known is not None:
            return self._authorize(known, data, call)
        found = authenticator.try_sync(bearer)
        if isinstance(found, Principal):
            return self._authorize(found, data, call)
        return PendingAuth(bearer, found, self._address(call.context))

    async def complete(self, checked: CheckedRequest, data: bytes, call: CallLifecycle) -> ReadyCall:
        """Do what is pending of the checks of a request. Raises what the call is refused with."""
        if isinstance(checked, PendingAuth):
            bearer, token, address = checked.bearer, checked.token, checked.address
            principal = await self._authenticator.authenticate(bearer, token, address)
            checked = self._authorize(principal, data, call)
        if isinstance(checked, PendingValidation):
            checked = await self._validate_large(checked, call)
        if isinstance(checked, LimitedCall):
            if self.limits is not None:
                await self.limits.finish(checked.pending)
            return checked.ready
        return checked

    def _authorize(
        self, principal: Principal, data: bytes, call: CallLifecycle
    ) -> ReadyCall | PendingValidation | LimitedCall:
        policy = self._policy
        if principal.kind not in policy.kinds or principal.methods is not None:  # the first asked of most calls
            policy.check(principal)
        octets = len(data)
        if data.startswith(GZIP_MAGIC):  # asked here: a call in each request would cost 1 % of auth_interceptor_us
            data = decompress(data, MAX_REQUEST_BYTES)
        try:
            if len(data) > LARGE_BYTES:
                if fault := excess_items(self._item_bounds, data):
                    raise InvalidRequest(fault)
                if self._holds_documents:
                    return PendingValidation(principal, data, octets)
            try:
                request = self._from_bytes(data)  # here and not by `_parse`, for the same 1 %
            except _UNPARSABLE:
                raise self._unparsable(data) from None
            violations = self._validate(request)
            if violations or principal.kind is not _USER:  # which is whom most calls are of
                self._require_valid(violations, request, principal)
        except InvalidRequest:
            self._count_invalid(principal, octets, call)
            raise
        ready = request, Call(self._name, call.request_id, principal)
        limits = self.limits
        if limits is None or not limits.limits.is_active:
            return ready
        pending = limits.check(principal, request, octets, call.started_s)
        return ready if pending is None else LimitedCall(ready, pending)

    async def _validate_large(self, checked: PendingValidation, call: CallLifecycle) -> ReadyCall | LimitedCall:
        principal, octets = checked.principal, checked.octets
        caller = principal.app_id, principal.caller
        try:
            request = self._parse(checked.data)
            violations = await self._large_requests.violations(caller, self._request_class, checked.data)
            self._require_valid(violations, request, principal)
        except InvalidRequest:
            self._count_invalid(principal, octets, call)
            raise
        return self._limit((request, Call(self._name, call.request_id, principal)), octets, call)

    def _limit(self, ready: ReadyCall, octets: int, call: CallLifecycle) -> ReadyCall | LimitedCall:
        limits = self.limits
        if limits is None or not limits.limits.is_active:
            return ready
        request, described = ready
        pending = limits.check(described.principal, request, octets, call.started_s)
        return ready if pending is None else LimitedCall(ready, pending)

    def _count_invalid(self, principal: Principal, octets: int, call: CallLifecycle) -> None:
        # Nobody waits for the limits of a call that is refused anyway: it is counted as far as it may be made.
        if self.limits is not None and self.limits.limits.is_active:
            self.limits.check(principal, None, octets, call.started_s)

    def _parse(self, data: bytes) -> Message:
        try:
            return self._from_bytes(data)
        except _UNPARSABLE:
            raise self._unparsable(data) from None

    def _unparsable(self, data: bytes) -> InvalidRequest:
        undecodable = undecodable_strings(self._request_type, data)
        whole = FieldViolation("", "these bytes are not a message of this type", FieldReason.MALFORMED)
        return InvalidRequest(*(undecodable or [whole]))

    def _require_valid(self, violations: Sequence[FieldViolation], request: Message, principal: Principal) -> None:
        # One error names every violation, that of a service which names no user among them.
        acting = self._acting_user
        if acting and principal.kind is not PrincipalKind.USER and not getattr(request, acting):
            violations = [*violations, FieldViolation(acting, "required when a service calls", FieldReason.REQUIRED)]
        if violations:
            raise InvalidRequest(*violations)

    def _address(self, context: Context) -> str:
        trusted = self._trusted_proxies
        return caller_address(context.peer(), forwarded(context.invocation_metadata()) if trusted else (), trusted)
