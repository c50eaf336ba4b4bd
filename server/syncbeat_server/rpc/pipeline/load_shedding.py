"""Sheds calls under overload: those go first whose callers lose least by waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from google.protobuf.descriptor import MethodDescriptor

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.errors import Overloaded, spread_retry_s
from syncbeat_server.ops.work_origin import WorkOrigin, WorkRank, method_origin
from syncbeat_server.ratelimit.policy.decision import Bound, decide
from syncbeat_server.rpc.pipeline.access import AccessPolicy


class Criticality(StrEnum):
    """The criticality of a call, from what is shed first to what never is."""

    POLL = "poll"
    DEVICE = "device"
    SIGN_IN = "sign_in"
    SERVICE = "service"
    OPERATOR = "operator"


# A call is shed while more than this many times the limit are in flight.
_HEADROOM = {
    Criticality.POLL: 1.0,
    Criticality.DEVICE: 1.25,
    Criticality.SIGN_IN: 1.5,
    Criticality.SERVICE: 2.0,
    Criticality.OPERATOR: math.inf,
}
_POLL = Criticality.POLL  # kept, since a look-up in an enum takes as long as a call
_CRITICALITY_OF = {PrincipalKind.SERVICE: Criticality.SERVICE, PrincipalKind.ADMIN: Criticality.OPERATOR}
_POLLS = frozenset({"GetHint", "ReportActivity"})
# What is done already, and would have to be kept and sent again by whoever did it.
_PROMISES = frozenset({"PublishChanges", "SendNotification", "IngestEvent", "AcknowledgeDelivery", "RevokeSession"})
_MIN_RETRY_S, _MAX_RETRY_S = 0.5, 300.0


def criticality_of(method: MethodDescriptor, policy: AccessPolicy) -> Criticality:
    """Return the criticality of a method's calls by users and by callers not authenticated yet."""
    if policy.public:
        return Criticality.SIGN_IN
    if PrincipalKind.USER not in policy.kinds:
        return Criticality.SERVICE if PrincipalKind.SERVICE in policy.kinds else Criticality.OPERATOR
    return Criticality.POLL if method.name in _POLLS else Criticality.DEVICE


def origin_of(method: MethodDescriptor) -> WorkOrigin:
    """Return the origin of a method's statements, with the rank in which its calls wait for the database."""
    return method_origin(method.name, WorkRank.PROMISE if method.name in _PROMISES else WorkRank.CALL)


@dataclass(slots=True)
class CallCounts:
    """Counts of a process's calls, which the pacing of hints reads.

    `in_flight` are those being served: without those that wait for their batch, and of a stream until its first answer.
    """

    started: int = 0
    shed: int = 0
    in_flight: int = 0


class Admission:
    """Admits calls while fewer than a limit are in flight, and polls while the cluster is within its capacity."""

    def __init__(
        self,
        max_in_flight: int,
        overload: Callable[[], float],
        retry_after_s: Callable[[], float],
        random_unit: Callable[[], float],
        on_shed: Callable[[str], None],
        counts: CallCounts | None = None,
    ) -> None:
        """`overload` returns the share of the cluster's requests above its capacity, `retry_after_s` when a shed call
        may come again, `random_unit` a random number from 0 to 1; `on_shed` gets the criticality of each call shed."""
        self.counts = counts or CallCounts()
        self.streams: Admission | None = None
        """That of calls that stream, which are counted and limited apart; None: they are as other calls."""
        self._max_in_flight = max_in_flight
        self._overload = overload
        self._retry_after_s = retry_after_s
        self._random_unit = random_unit
        self._on_shed = on_shed

    def of(self, method: MethodDescriptor) -> Admission:
        """Return the admission of the calls of a method."""
        return self.streams if self.streams is not None and method.server_streaming else self

    def check(self, criticality: Criticality, principal: Principal | None) -> None:
        """Raise Overloaded if this call is to be shed.

        `criticality` is that of its method; `principal`, None while it is not authenticated, may raise it.
        """
        if self.counts.in_flight <= self._max_in_flight and not (criticality is _POLL and self._overload()):
            return
        if principal is not None:
            criticality = _CRITICALITY_OF.get(principal.kind, criticality)
        # The call itself is counted already.
        room = decide(Bound(self._max_in_flight * _HEADROOM[criticality]), self.counts.in_flight - 1)
        if not room.allowed or (criticality is Criticality.POLL and self._random_unit() < self._overload()):
            self.counts.shed += 1
            self._on_shed(criticality)
            delay_s = min(_MAX_RETRY_S, self._retry_after_s()) + spread_retry_s(self._random_unit(), _MIN_RETRY_S)
            raise Overloaded("there are more calls than can be served now", retry_after_s=delay_s)
