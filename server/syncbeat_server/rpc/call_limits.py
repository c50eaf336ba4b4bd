"""Holds calls against the rates of their app, caller, device and scope (ADR 134).

A call is counted once its request is read: valid or not, refused by its servicer or not. What public methods are held
against is theirs: they have no caller to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import RateLimited
from syncbeat_server.ratelimit.lease import PendingTake, Refused, Want
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Tier, TierPolicy
from syncbeat_server.ratelimit.policy.decision import refusal
from syncbeat_server.ratelimit.rules import AppRules
from syncbeat_server.ratelimit.shared_limits import SharedLimits

TierOf = Callable[[TierPolicy, Principal], Tier | None]
"""Returns the tier of a user; None: it has none, and only the app's own limits hold."""

_CLASSES = {
    "GetHint": MethodClass.HINT,
    "ReportActivity": MethodClass.HINT,
    "PublishChanges": MethodClass.PUBLISH,
    "SendNotification": MethodClass.SEND,
    "IngestEvent": MethodClass.EVENT,
}
_PRINCIPAL, _APP, _SCOPE = LimitSubject.PRINCIPAL, LimitSubject.APP, LimitSubject.SCOPE


def class_of(method: MethodDescriptor) -> MethodClass:
    """Return the class that calls of a method are counted in; opening a stream is a class of its own."""
    return MethodClass.STREAM if method.server_streaming else _CLASSES.get(method.name, MethodClass.OTHER)


def default_tier(policy: TierPolicy, _: Principal) -> Tier | None:
    """Return the default tier of an app, for users who have none of their own."""
    return policy.tiers.get(policy.default_tier or "")


class CallLimits:
    """The limits of all apps in one process."""

    def __init__(
        self,
        shared: SharedLimits,
        tier_of: TierOf = default_tier,
        on_refused: Callable[[str, str, str], None] | None = None,
    ) -> None:
        """`on_refused` gets app, subject and class of the limit that refused a call."""
        self.is_active = False
        """At least one app has limits: else no call is looked at."""
        self.shared = shared
        self.tier_of = tier_of
        self.on_refused = on_refused or (lambda app_id, subject, method_class: None)
        self.apps: Mapping[str, AppRules] = {}

    def adopt(self, policies: Mapping[str, TierPolicy]) -> None:
        """Go by these policies of apps from now on. What was counted under the names of before still counts."""
        before = self.apps
        self.apps = {
            app_id: before[app_id] if app_id in before and before[app_id].policy == policy else AppRules(app_id, policy)
            for app_id, policy in policies.items()
            if policy.tiers
        }
        self.is_active = bool(self.apps)
        if self.is_active:
            self.shared.activate()


class MethodLimits:
    """Holds the calls of one method against the limits."""

    def __init__(self, limits: CallLimits, method: MethodDescriptor) -> None:
        self.limits = limits
        self._class = class_of(method)
        fields = method.input_type.fields_by_name
        self._names_user = "user_id" in fields
        self._names_device = "device_id" in fields
        self._names_app = "app_id" in fields
        self._scopes = _scopes_of(method)

    def check(self, principal: Principal, request: Message | None, octets: int, now: float) -> PendingTake | None:
        """Count a call of so many octets; None for a request that is not valid, which counts for app and caller alone.

        Returns None, or what has to be waited for with `finish`.

        Raises:
            RateLimited: a limit refuses the call. The strictest one is told, and none is spent.
            Overloaded: too many calls wait for their limits.
        """
        wants = self._wants(principal, request, octets)
        if not wants:
            return None
        taken = self.limits.shared.take(wants, now)
        if isinstance(taken, Refused):
            raise self._refusal(taken)
        return taken

    async def finish(self, pending: PendingTake) -> None:
        """Wait for what a call could not take at once. Raises RateLimited."""
        refused = await self.limits.shared.finish(pending)
        if refused is not None:
            raise self._refusal(refused)

    def _refusal(self, refused: Refused) -> RateLimited:
        rule = refused.rule
        self.limits.on_refused(rule.prefix.partition(":")[0], rule.subject, rule.method_class)
        what = "octets" if rule.method_class is MethodClass.BYTES else f"{rule.method_class} calls"
        return refusal(
            f"the {rule.subject}'s limit of {what} is reached",
            refused.decision,
            subject=rule.subject,
            method_class=rule.method_class,
        )

    def _wants(self, principal: Principal, request: Any, octets: int) -> list[Want]:
        kind, limits = principal.kind, self.limits
        if kind is PrincipalKind.USER:
            app = limits.apps.get(principal.app_id)
            if app is None:
                return []
            rules = app.of_user(limits.tier_of(app.policy, principal))[self._class]
        elif kind is PrincipalKind.SERVICE:
            app = limits.apps.get(self._app_of_service(principal, request))
            if app is None:
                return []
            rules = app.of_services[self._class]
        else:
            return []  # operators, who are few and come when something is wrong
        wants: list[Want] = []
        for subject, rule, by_octets in rules:
            cost = float(octets) if by_octets else 1.0
            if subject is _PRINCIPAL:
                wants.append(((rule, principal.name), cost))
            elif subject is _APP:
                wants.append(((rule,), cost))
            elif request is None:
                continue
            elif subject is _SCOPE:
                # A user's calls count for the scope by themselves: nobody uses up the limit of a scope of others.
                user = principal.name if kind is PrincipalKind.USER else ""
                wants += [((rule, scope, user), cost) for scope in self._scopes(request)]
            elif self._names_device and (device := request.device_id):
                wants.append(((rule, self._device_owner(principal, request), device), cost))
        return wants

    def _device_owner(self, principal: Principal, request: Any) -> str:
        if principal.kind is PrincipalKind.USER:
            return principal.name
        return str(request.user_id) if self._names_user else ""

    def _app_of_service(self, principal: Principal, request: Any) -> str:
        named = str(request.app_id) if request is not None and self._names_app else ""
        if not named:
            named = next(iter(principal.apps)) if len(principal.apps) == 1 else DEFAULT_APP
        # An app that it may not act for is nothing to it, and the call is refused.
        return named if named in principal.apps else ""


def _scopes_of(method: MethodDescriptor) -> Callable[[Any], Iterable[str]]:
    """Return a function that finds the scopes that a request of this method is about; of cursors it only mentions."""
    fields = method.input_type.fields_by_name
    if "scope" in fields:
        return lambda request: (request.scope,) if request.scope else ()
    if "changes" in fields:
        return lambda request: dict.fromkeys(change.scope for change in request.changes)
    if "cursor" in fields:
        return lambda request: (request.cursor.scope,)
    return lambda request: ()
