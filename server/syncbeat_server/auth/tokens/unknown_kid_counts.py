"""Tracks key ids that match no known key: first seen when, and from how many addresses. Bounded. Pure."""

from __future__ import annotations

from collections import OrderedDict

MANY_ADDRESSES = 5
"""An unknown kid from so many addresses is not one attacker's invention: the issuer has probably rotated its keys."""
_MAX_KIDS = 1_024


class UnknownKid:
    """An unknown kid: the number of key fetches begun before it was first seen, and the addresses that presented it."""

    __slots__ = ("addresses", "seen_after")

    def __init__(self, seen_after: int) -> None:
        self.seen_after = seen_after
        self.addresses: set[str] = set()

    @property
    def widely_seen(self) -> bool:
        """Tell if many distinct addresses have presented it."""
        return len(self.addresses) >= MANY_ADDRESSES


class UnknownKids:
    """Least-recently-used map of at most 1,024 unknown kids."""

    def __init__(self) -> None:
        self._kids: OrderedDict[str, UnknownKid] = OrderedDict()

    def record(self, kid: str, address: str, begun: int, forget_before: int) -> UnknownKid:
        """Record that `address` presents a kid after `begun` key fetches have begun.

        An entry first seen before fetch number `forget_before` is replaced by a new one.
        """
        known = self._kids.get(kid)
        if known is None or known.seen_after < forget_before:
            known = self._kids[kid] = UnknownKid(begun)
            if len(self._kids) > _MAX_KIDS:
                self._kids.popitem(last=False)
        self._kids.move_to_end(kid)
        if address and not known.widely_seen:
            known.addresses.add(address)
        return known
