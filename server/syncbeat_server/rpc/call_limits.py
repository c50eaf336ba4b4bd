"""Holds calls against the rates of their app, caller, device and scope (ADR 134), and their monthly quotas (ADR 141).

A call is counted once its request is read: valid or not, refused by its servicer or not. What public methods are held
against is theirs: they have no caller to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import RateLimited
from syncbeat_server.ratelimit.lease import LimitRule, PendingTake, Refused, Want
from syncbeat_server.ratelimit.model import (
    LimitSubject,
    MethodClass,
    QuotaCharge,
    QuotaUse,
    Tier,
    TierLimit,
    TierPolicy,
)
from syncbeat_server.ratelimit.policy.decision import Decision, refusal
from syncbeat_server.ratelimit.policy.tiers import resolve_tier
from syncbeat_server.ratelimit.quotas import QuotaCounters, QuotaRefused, Unread
from syncbeat_server.ratelimit.rules import AppRules, CountedRule
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
_PRINCIPAL, _DEVICE, _SCOPE = LimitSubject.PRINCIPAL, LimitSubject.DEVICE, LimitSubject.SCOPE


def class_of(method: MethodDescriptor) -> MethodClass:
    """Return the class that calls of a method are counted in; opening a stream is a class of its own."""
    return MethodClass.STREAM if method.server_streaming else _CLASSES.get(method.name, MethodClass.OTHER)


def tier_of_user(policy: TierPolicy, principal: Principal) -> Tier | None:
    """Return the tier of a user: the one that was set, else that of its token, else the app's default."""
    token = principal.token
    return resolve_tier(policy, principal.tier, "" if token is None else token.tier)


class PendingCall(NamedTuple):
    """Holds what a call has to wait for: units of rates, then its quotas."""

    taken: PendingTake | None
    use: QuotaUse | None


class CallLimits:
    """The limits of all apps in one process."""

    def __init__(
        self,
        shared: SharedLimits,
        quotas: QuotaCounters | None = None,
        tier_of: TierOf = tier_of_user,
        on_refused: Callable[[str, str, str], None] | None = None,
    ) -> None:
        """Without `quotas` none hold. `on_refused` gets app, subject and class of the limit that refused a call."""
        self.is_active = False
        """At least one app has limits: else no call is looked at."""
        self.shared = shared
        self.quotas = quotas
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

    def check(self, principal: Principal, request: Message | None, octets: int, now: float) -> PendingCall | None:
        """Count a call of so many octets; None for a request that is not valid, which counts for app and caller alone.

        Returns None, or what has to be waited for with `finish`.

        Raises:
            RateLimited: a limit refuses the call. The strictest one is told, and no rate is spent, unless a quota
                refuses what rates would let through.
            Overloaded: too many calls wait for their limits.
        """
        limits, app_id = self.limits, self._app_of(principal, request)
        app = limits.apps.get(app_id)
        if app is None:
            return None
        if principal.kind is PrincipalKind.USER:
            tier = limits.tier_of(app.policy, principal)
            rules, quotas = app.of_user(tier), app.quotas_of_user(tier)
        else:
            rules, quotas = app.of_services, app.quotas_of_services
        taken = limits.shared.take(self._wants(rules[self._class], principal, request, octets), now)
        if isinstance(taken, Refused):
            raise self._refusal(app_id, taken.rule, taken.decision)
        use = None
        if app.has_quotas and limits.quotas is not None and (counted := quotas[self._class]):
            charges = [QuotaCharge(one.limit, octets if one.by_octets else 1, one.tier) for one in counted]
            use = QuotaUse(app_id, principal.caller, app.policy.time_zone, charges)
            if taken is None and (answer := limits.quotas.take_quota(use)) is not Unread.UNREAD:
                self._require(answer, app_id)
                return None
        return None if taken is None and use is None else PendingCall(taken, use)

    async def finish(self, pending: PendingCall) -> None:
        """Wait for what a call could not take at once. Raises RateLimited."""
        limits, use = self.limits, pending.use
        if pending.taken is not None:
            refused = await limits.shared.finish(pending.taken)
            if refused is not None:
                raise self._refusal(refused.rule.prefix.partition(":")[0], refused.rule, refused.decision)
        if use is not None and limits.quotas is not None:
            self._require(await limits.quotas.wait_for_quota(use), use.app_id)

    def _require(self, refused: QuotaRefused | None, app_id: str) -> None:
        if refused is not None:
            raise self._refusal(app_id, refused.limit, refused.decision, "monthly quota")

    def _refusal(
        self, app_id: str, rule: LimitRule | TierLimit, decision: Decision, sort: str = "limit"
    ) -> RateLimited:
        self.limits.on_refused(app_id, rule.subject, rule.method_class)
        what = "octets" if rule.method_class is MethodClass.BYTES else f"{rule.method_class} calls"
        return refusal(
            f"the {rule.subject}'s {sort} of {what} is reached",
            decision,
            subject=rule.subject,
            method_class=rule.method_class,
        )

    def _app_of(self, principal: Principal, request: Any) -> str:
        if principal.kind is PrincipalKind.USER:
            return principal.app_id
        # Not of operators, who are few and come when something is wrong.
        return self._app_of_service(principal, request) if principal.kind is PrincipalKind.SERVICE else ""

    def _wants(self, rules: Iterable[CountedRule], principal: Principal, request: Any, octets: int) -> list[Want]:
        wants: list[Want] = []
        for subject, rule, by_octets in rules:
            cost = float(octets) if by_octets else 1.0
            if subject is _PRINCIPAL:
                wants.append(((rule, principal.name), cost))
            elif subject is _DEVICE or subject is _SCOPE:
                wants += self._by_request(CountedRule(subject, rule, by_octets), cost, principal, request)
            else:
                wants.append(((rule,), cost))
        return wants

    def _by_request(self, counted: CountedRule, cost: float, principal: Principal, request: Any) -> Iterable[Want]:
        if request is None:
            return ()
        user = principal.name if principal.kind is PrincipalKind.USER else ""
        if counted.subject is _DEVICE:
            if not self._names_device or not request.device_id:
                return ()
            owner = user or (request.user_id if self._names_user else "")
            return [((counted.rule, owner, request.device_id), cost)]
        # A user's calls count for the scope by themselves, so that nobody uses up the limit of a scope of others.
        return [((counted.rule, scope, user), cost) for scope in self._scopes(request)]

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
