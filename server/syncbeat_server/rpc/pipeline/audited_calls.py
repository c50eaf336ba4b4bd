"""Checks requests of methods that write audit entries, and notes on whose behalf each call acts, and from where.

Apart from the checks of other methods, which the busiest calls go through: those note nothing.
"""

from __future__ import annotations

from functools import partial

from syncbeat_server.audit.origin import Origin, origin
from syncbeat_server.auth.model import Principal
from syncbeat_server.rpc.pipeline.call_lifecycle import CallLifecycle, Context
from syncbeat_server.rpc.pipeline.client_address import Network, forwarded, full_address
from syncbeat_server.rpc.pipeline.request_checks import (
    CheckedRequest,
    LimitedCall,
    PendingValidation,
    ReadyCall,
    RequestChecks,
)

ANONYMOUS_ACTOR = "anonymous"
"""The actor of a public method, whose caller is not authenticated."""


class AuditedRequestChecks(RequestChecks):
    """The checks of the requests of one method that writes audit entries."""

    def check(self, data: bytes, call: CallLifecycle) -> CheckedRequest:
        """Check a request as far as memory allows. Raises what the call is refused with."""
        if self._policy.public:
            self._note(ANONYMOUS_ACTOR, call)
        return super().check(data, call)

    def _authorize(
        self, principal: Principal, data: bytes, call: CallLifecycle
    ) -> ReadyCall | PendingValidation | LimitedCall:
        self._note(principal.caller, call)
        return super()._authorize(principal, data, call)

    def _note(self, actor: str, call: CallLifecycle) -> None:
        address = partial(_address_of, call.context, self._trusted_proxies)
        origin.set(Origin(actor, address, call.request_id))


def _address_of(context: Context, trusted: tuple[Network, ...]) -> str:
    return full_address(context.peer(), forwarded(context.invocation_metadata()) if trusted else (), trusted)
