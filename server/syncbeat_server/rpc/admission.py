"""Which calls are let in when there are more than can be served: the less it costs to wait, the earlier one is shed."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

from google.protobuf.descriptor import MethodDescriptor

from syncbeat_server.auth.model import Principal, PrincipalKind
from syncbeat_server.errors import Overloaded
from syncbeat_server.rpc.access import AccessPolicy


class Rank(StrEnum):
    """What a call is to others, from what is shed first to what never is."""

    POLL = "poll"
    DEVICE = "device"
    SIGN_IN = "sign_in"
    SERVICE = "service"
    OPERATOR = "operator"


# How many times the bound may be under way before a call of the rank is shed.
_ROOM = {Rank.POLL: 1.0, Rank.DEVICE: 1.25, Rank.SIGN_IN: 1.5, Rank.SERVICE: 2.0, Rank.OPERATOR: math.inf}
_RANK_OF = {PrincipalKind.SERVICE: Rank.SERVICE, PrincipalKind.ADMIN: Rank.OPERATOR}
_POLLS = frozenset({"GetHint", "ReportActivity"})
_SOONEST_S, _LATEST_S = 0.5, 300.0


def rank_of(method: MethodDescriptor, policy: AccessPolicy) -> Rank:
    """The rank of a method's calls by users and by callers that are not known yet."""
    if policy.public:
        return Rank.SIGN_IN
    if PrincipalKind.USER not in policy.kinds:
        return Rank.SERVICE if PrincipalKind.SERVICE in policy.kinds else Rank.OPERATOR
    return Rank.POLL if method.name in _POLLS else Rank.DEVICE


class Admission:
    """Lets calls in as long as not too many are under way, and polls as long as the fleet is not over its capacity."""

    def __init__(
        self,
        most_in_flight: int,
        overload: Callable[[], float],
        return_s: Callable[[], float],
        draw: Callable[[], float],
        observe: Callable[[str], None],
    ) -> None:
        """`overload` knows what share of the fleet's requests is too much, `return_s` when a call may come again.

        `draw` gives numbers from 0 to 1 by chance, `observe` is told the rank of each call that is shed.
        """
        self.started = self.shed = 0
        """How many calls there were, and how many were shed."""
        self.under_way = 0
        """How many there are now, without those that wait for others to be served with. Of a stream that is only what
        comes before its first answer."""
        self._most = most_in_flight
        self._overload = overload
        self._return_s = return_s
        self._draw = draw
        self._observe = observe

    def enter(self) -> None:
        """The turn of a call has come; `leave` says that it has ended."""
        self.started += 1
        self.under_way += 1

    def leave(self) -> None:
        """A call that was under way has ended."""
        self.under_way -= 1

    def check(self, rank: Rank, principal: Principal | None) -> None:
        """Raise Overloaded when this call is to be shed. `rank` is its method's, `principal` None while not known."""
        if self.under_way <= self._most and not (rank is Rank.POLL and self._overload()):
            return
        if principal is not None:
            rank = _RANK_OF.get(principal.kind, rank)
        full = self.under_way > self._most * _ROOM[rank]
        if full or (rank is Rank.POLL and self._draw() < self._overload()):
            self.shed += 1
            self._observe(rank)
            delay_s = min(_LATEST_S, self._return_s())
            # Nobody comes back at once; and not all that are shed at one moment after the same while.
            raise Overloaded(
                "there are more calls than can be served now", retry_after_s=delay_s + _SOONEST_S * (1.0 + self._draw())
            )
