"""Kids that no known key has: since when each is asked for, and from how many addresses. Bounded. Pure."""

from __future__ import annotations

from collections import OrderedDict

MANY_ADDRESSES = 5
"""From so many the same unknown kid is not one caller's invention: the issuer has probably changed its keys."""
_MOST_KIDS = 1_024


class UnknownKid:
    """One of them: how many fetches had begun when it first came up, and who has asked for it."""

    __slots__ = ("addresses", "seen_after")

    def __init__(self, seen_after: int) -> None:
        self.seen_after = seen_after
        self.addresses: set[str] = set()

    @property
    def widely_seen(self) -> bool:
        """Tell if many distinct addresses have asked for it."""
        return len(self.addresses) >= MANY_ADDRESSES


class UnknownKids:
    """Remembers 1,024; those nobody has asked for the longest go first."""

    def __init__(self) -> None:
        self._kids: OrderedDict[str, UnknownKid] = OrderedDict()

    def met(self, kid: str, address: str, begun: int, forget_before: int) -> UnknownKid:
        """Note that `address` asks for a kid, `begun` fetches having begun. One of before `forget_before` is new."""
        known = self._kids.get(kid)
        if known is None or known.seen_after < forget_before:
            known = self._kids[kid] = UnknownKid(begun)
            if len(self._kids) > _MOST_KIDS:
                self._kids.popitem(last=False)
        self._kids.move_to_end(kid)
        if address and not known.widely_seen:
            known.addresses.add(address)
        return known
