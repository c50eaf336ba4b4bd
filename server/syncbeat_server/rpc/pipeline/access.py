"""Reads the access policy of every method from its option in the contract; a method without one stops start-up."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.errors import AccessDenied, ConfigurationError
from syncbeat_server.rpc.contract.options import access_of

_KINDS = {
    "USER": PrincipalKind.USER,
    "SERVICE": PrincipalKind.SERVICE,
    "ADMIN": PrincipalKind.ADMIN,
}


@dataclass(frozen=True)
class AccessPolicy:
    """The kinds of caller that one method admits; `public` admits everybody, without credentials."""

    method: str
    public: bool
    kinds: frozenset[PrincipalKind]

    def check(self, principal: Principal) -> None:
        """Raise AccessDenied unless this principal may call the method."""
        if principal.kind not in self.kinds:
            raise AccessDenied("this kind of caller may not call this method")
        if principal.methods is not None and self.method not in principal.methods:
            raise AccessDenied("this method is not on the caller's allow-list")


def access_policies(service: ServiceDescriptor) -> dict[str, AccessPolicy]:
    """Return the policy of each method of a service, by method name.

    Raises:
        ConfigurationError: a method has no access option.
    """
    return {method.name: _policy(method) for method in service.methods}


def _policy(method: MethodDescriptor) -> AccessPolicy:
    options = access_of(method)
    if not options or "UNSPECIFIED" in options:
        raise ConfigurationError(f"{method.full_name} has no access option: nobody could say who may call it")
    public = "PUBLIC" in options
    return AccessPolicy(method.name, public, frozenset(_KINDS[option] for option in options if option in _KINDS))
