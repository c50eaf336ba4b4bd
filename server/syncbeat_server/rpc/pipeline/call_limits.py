"""Holds calls against the rates and monthly quotas of their app, caller, device and scope (ADR 134, ADR 136).

A call is counted once its request is read: valid or not, refused by its servicer or not. What public methods are held
against is theirs: they have no caller to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.descriptor import MethodDescriptor

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.clock import Clock
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import RateLimited
from syncbeat_server.ratelimit.lease import PendingTake, Refused, Want
from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, QuotaCharge, QuotaDecision, TierPolicy
from syncbeat_server.ratelimit.policy.decision import Decision, refusal
from syncbeat_server.ratelimit.quotas import QuotaCounters
from syncbeat_server.ratelimit.rules import AppRules, CallRules, count_by_scope
from syncbeat_server.ratelimit.shared_limits import SharedLimits

_CLASSES = {
    "GetHint": MethodClass.HINT,
    "ReportActivity": MethodClass.HINT,
    "PublishChanges": MethodClass.PUBLISH,
    "SendNotification": MethodClass.SEND,
    "IngestEvent": MethodClass.EVENT,
}
_PRINCIPAL, _APP, _SCOPE = LimitSubject.PRINCIPAL, LimitSubject.APP, LimitSubject.SCOPE
_USER, _SERVICE = PrincipalKind.USER, PrincipalKind.SERVICE
_READINGS = 3


class QuotaUse(NamedTuple):
    """Names what a call takes of its monthly quotas."""

    app_id: str
    principal: str
    time_zone: str
    charges: Sequence[QuotaCharge]


class PendingLimits(NamedTuple):
    """Holds what a call waits for: rates that Redis is asked for, quotas whose counts are read."""

    taken: PendingTake | None
    quotas: QuotaUse | None


def class_of(method: MethodDescriptor) -> MethodClass:
    """Return the class that calls of a method are counted in; opening a stream is a class of its own."""
    return MethodClass.STREAM if method.server_streaming else _CLASSES.get(method.name, MethodClass.OTHER)


class CallLimits:
    """The limits of all apps in one process."""

    def __init__(
        self,
        shared: SharedLimits,
        quotas: QuotaCounters,
        clock: Clock,
        on_refused: Callable[[str, str, str], None],
    ) -> None:
        """`on_refused` gets app, subject and class of the limit that refused a call."""
        self.is_active = False
        """At least one app has limits: else no call is looked at."""
        self.shared = shared
        self.quotas = quotas
        self.clock = clock
        self.on_refused = on_refused
        self.apps: Mapping[str, AppRules] = {}

    def adopt(self, policies: Mapping[str, TierPolicy]) -> None:
        """Go by these policies of apps from now on. What was counted of a rate that stays still counts."""
        before = self.apps
        self.apps = {
            app_id: rules if rules is not None and rules.policy == policy else AppRules(app_id, policy, rules)
            for app_id, policy in policies.items()
            if policy.tiers
            for rules in [before.get(app_id)]
        }
        self.is_active = bool(self.apps)
        if self.is_active:
            self.shared.activate()


class MethodLimits:
    """Holds the calls of one method against the limits."""

    def __init__(self, limits: CallLimits, method: MethodDescriptor) -> None:
        self.limits = limits
        self._class = class_of(method).value  # the plain text, whose hash is no call of Python
        fields = method.input_type.fields_by_name
        self._names_user = "user_id" in fields
        self._names_device = "device_id" in fields
        self._names_app = "app_id" in fields
        self._scopes = _scopes_of(method)

    def check(self, principal: Principal, request: Any, octets: int, now: float) -> PendingLimits | None:
        """Count a call of so many octets; None for a request that is not valid, which counts for app and caller alone.

        Returns None, or what has to be waited for with `finish`.

        Raises:
            RateLimited: a limit refuses the call. The strictest rate is told, and no rate or quota is spent; a call
                that a quota refuses has spent its rates.
            Overloaded: too many calls wait for their limits.
        """
        if principal.kind is not _USER:
            return self._check_service(principal, request, octets, now)
        limits, token, method_class = self.limits, principal.token, self._class
        app = limits.apps.get(principal.app_id)
        if app is None:
            return None
        tier, claimed = principal.tier, "" if token is None else token.tier
        rules = app.resolved.get((tier, claimed, method_class)) or app.of_user(tier, claimed, method_class)
        taken: Refused | PendingTake | None = None
        if rules.by_scope and self._scopes is not None:
            taken = limits.shared.take(self._wants(rules.rates, principal, request, octets), now)
        elif rules.rates:
            # Most calls: the same buckets as those of the call before. Found here, since each call of Python is a
            # twentieth of what limits cost a GetHint (limit_us).
            names_device = rules.by_device and self._names_device and request is not None
            call = rules, principal.name, request.device_id if names_device else ""
            found = limits.shared.known.get(call)
            if found is None:
                found = limits.shared.remember(call, self._wants(rules.rates, principal, request, 0), now)
            taken = limits.shared.take_found(found, octets, now)
        if taken is None and not rules.quotas:
            return None
        return self._pending(app, rules, principal, octets, taken)

    def _check_service(self, principal: Principal, request: Any, octets: int, now: float) -> PendingLimits | None:
        app = self.limits.apps.get(self._app_of_service(principal, request))
        # Operators are few, and come when something is wrong.
        if app is None or principal.kind is not _SERVICE:
            return None
        rules = app.of_services[self._class]
        wants = self._wants(rules.rates, principal, request, octets)
        return self._pending(app, rules, principal, octets, self.limits.shared.take(wants, now))

    def _pending(
        self, app: AppRules, rules: CallRules, principal: Principal, octets: int, taken: Refused | PendingTake | None
    ) -> PendingLimits | None:
        """Return what is left to be waited for once rates were taken; None: nothing. Raises RateLimited."""
        if isinstance(taken, Refused):
            raise self._refusal(taken)
        if not rules.quotas:
            return None if taken is None else PendingLimits(taken, None)
        charges = [QuotaCharge(one.limit, octets if one.by_octets else 1, one.tier) for one in rules.quotas]
        use = QuotaUse(app.app_id, principal.caller, app.policy.time_zone, charges)
        return None if taken is None and self._take_quotas(use) else PendingLimits(taken, use)

    async def finish(self, pending: PendingLimits) -> None:
        """Wait for what a call could not take at once. Raises RateLimited."""
        if pending.taken is not None:
            refused = await self.limits.shared.finish(pending.taken)
            if refused is not None:
                raise self._refusal(refused)
        if (use := pending.quotas) is None:
            return
        for _ in range(_READINGS):  # a count that was read may have to make room for others
            if self._take_quotas(use):
                return
            await self.limits.quotas.load(use.app_id, use.principal, use.time_zone, use.charges)

    def _take_quotas(self, use: QuotaUse) -> bool:
        """Take of the monthly quotas; False: their counts have to be read first. Raises RateLimited."""
        decision = self.limits.quotas.take_quota(*use)
        if decision is not None and not decision.admitted:
            raise self._quota_refusal(use, decision)
        return decision is not None

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

    def _quota_refusal(self, use: QuotaUse, decision: QuotaDecision) -> RateLimited:
        limit = decision.by
        if limit is None:
            raise AssertionError("a quota that refuses is some limit's")
        self.limits.on_refused(use.app_id, limit.subject, limit.method_class)
        wait_s = max(1.0, decision.resets_at - self.limits.clock.now().timestamp())
        return refusal(
            f"the {limit.subject}'s monthly quota of {limit.method_class} is used up",
            Decision(False, decision.limit, decision.remaining, wait_s, wait_s),
            subject=limit.subject,
            method_class=limit.method_class,
        )

    def _wants(self, rates: Iterable[Any], principal: Principal, request: Any, octets: int) -> list[Want]:
        wants: list[Want] = []
        for subject, rule, by_octets in rates:
            cost = float(octets) if by_octets else 1.0
            if subject is _PRINCIPAL:
                wants.append(((rule, principal.name), cost))
            elif subject is _APP:
                wants.append(((rule,), cost))
            elif request is None:
                continue
            elif subject is _SCOPE:
                if self._scopes is None:
                    continue
                user_id = principal.name if principal.kind is _USER else ""
                wants += count_by_scope(rule, self._scopes(request), user_id, cost)
            elif self._names_device and (device := request.device_id):
                wants.append(((rule, self._device_owner(principal, request), device), cost))
        return wants

    def _device_owner(self, principal: Principal, request: Any) -> str:
        if principal.kind is _USER:
            return principal.name
        return str(request.user_id) if self._names_user else ""

    def _app_of_service(self, principal: Principal, request: Any) -> str:
        named = str(request.app_id) if request is not None and self._names_app else ""
        if not named:
            named = next(iter(principal.apps)) if len(principal.apps) == 1 else DEFAULT_APP
        # An app that it may not act for is nothing to it, and the call is refused.
        return named if named in principal.apps else ""


def _scopes_of(method: MethodDescriptor) -> Callable[[Any], Iterable[str]] | None:
    """Return what finds the scopes that a request of this method is about; None: cursors at most only mention some."""
    fields = method.input_type.fields_by_name
    if "scope" in fields:
        return lambda request: (request.scope,) if request.scope else ()
    if "changes" in fields:
        return lambda request: dict.fromkeys(change.scope for change in request.changes)
    if "effects" in fields:
        return lambda request: dict.fromkeys(change.scope for change in request.effects.changes)
    if "cursor" in fields:
        return lambda request: (request.cursor.scope,)
    return None
