"""Checks a history of deliveries: what was promised, what the queue did, what the devices got (ADR 40).

A history is made of three witnesses that do not know each other: the callers (what was accepted), a trigger in the
database (each change of a delivery's state, and which process made it) and the fake FCM (what reached a device).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

QUEUED = frozenset({"SCHEDULED", "HELD", "PENDING", "IN_FLIGHT"})
ENDED = frozenset({"SENT", "RECEIVED", "OPENED", "SUPPRESSED", "EXPIRED", "DEAD", "CANCELLED"})
REACHED = frozenset({"SENT", "RECEIVED", "OPENED"})
_ATTEMPT_ENDS = frozenset({"SENT", "DEAD", "PENDING", "HELD", "CANCELLED", "EXPIRED"})


@dataclass(frozen=True)
class Change:
    """One change of one delivery, as the database saw it. `overdue`: the lease it had was over by then."""

    delivery_id: str
    before: str
    after: str
    lease_before: str | None
    lease_after: str | None
    process: str
    overdue: bool = False


@dataclass(frozen=True)
class Arrival:
    """One message that the provider took: for which device, as which delivery, and what its screen did."""

    delivery_id: str
    token: str
    effect: str


@dataclass(frozen=True)
class History:
    """Everything that is known. `accepted`: how many deliveries of each notification were promised."""

    accepted: Mapping[str, int]
    final: Mapping[str, tuple[str, str]]  # delivery -> (notification, state)
    changes: Sequence[Change]
    arrivals: Sequence[Arrival]


def violations(history: History) -> list[str]:
    """Return what is wrong with a history; empty when it is good."""
    return [
        *_lost(history),
        *_stale(history.changes),
        *_revived(history.changes),
        *_shown_twice(history.arrivals),
        *_asked_again(history),
        *_claimed_without_sending(history),
    ]


def unended(history: History) -> int:
    """Return how many deliveries are still queued."""
    return sum(state in QUEUED for _, state in history.final.values())


def _lost(history: History) -> Iterable[str]:
    there = Counter(notification for notification, _ in history.final.values())
    for notification, promised in history.accepted.items():
        if there[notification] != promised:
            yield f"lost: {promised} deliveries of {notification} were accepted, {there[notification]} are there"
    for delivery, (_, state) in history.final.items():
        if state not in QUEUED | ENDED:
            yield f"lost: {delivery} is in no state: {state}"


def _stale(changes: Sequence[Change]) -> Iterable[str]:
    """A completion by who does not hold the lease."""
    holder: dict[str, tuple[str | None, str]] = {}
    sent = set[str]()
    for change in changes:
        if change.before == "SENT":
            sent.add(change.delivery_id)
        if change.after == "IN_FLIGHT" and change.before != "IN_FLIGHT":
            holder[change.delivery_id] = (change.lease_after, change.process)
        elif change.before == "IN_FLIGHT" and change.after in _ATTEMPT_ENDS:
            lease, process = holder.get(change.delivery_id, (None, ""))
            waits = "SENT" if change.delivery_id in sent else "PENDING"
            rescued = change.after == waits and change.overdue
            if change.lease_before != lease or (change.process != process and not rescued):
                yield f"stale: {change.process} ended {change.delivery_id}, which {process or 'nobody'} held"
        elif change.before in QUEUED and change.after in ("SENT", "DEAD"):
            yield f"stale: {change.process} made {change.delivery_id} {change.after} without a lease"


def _revived(changes: Sequence[Change]) -> Iterable[str]:
    """Find revivals: what has ended stays so, but for receipts, redrives, and wake-ups that are sent again."""
    for change in changes:
        received = change.after in ("RECEIVED", "OPENED")
        again = (change.before, change.after) in (("DEAD", "PENDING"), ("SENT", "IN_FLIGHT"))
        if change.before in ENDED and change.after != change.before and not received and not again:
            yield f"revived: {change.delivery_id} went from {change.before} to {change.after}"


def _shown_twice(arrivals: Sequence[Arrival]) -> Iterable[str]:
    shown = Counter((a.token, a.delivery_id) for a in arrivals if a.effect == "shown")
    for (token, delivery), times in shown.items():
        if times > 1:
            yield f"shown twice: {delivery} came up {times} times on {token}"


def _asked_again(history: History) -> Iterable[str]:
    """Only what shows nothing is sent again after the provider took it, and it stays taken."""
    again = {c.delivery_id for c in history.changes if (c.before, c.after) == ("SENT", "IN_FLIGHT")}
    for delivery in again & {arrival.delivery_id for arrival in history.arrivals if arrival.effect != "data"}:
        yield f"shown again: {delivery} shows something and was sent again"
    for delivery in again:
        _, state = history.final.get(delivery, ("", "SENT"))
        if state not in REACHED | {"IN_FLIGHT"}:
            yield f"taken back: {delivery} was sent and is {state}"


def _claimed_without_sending(history: History) -> Iterable[str]:
    """SENT is only what the provider took; and it is not asked more often than it was claimed."""
    came: dict[str, int] = defaultdict(int)
    for arrival in history.arrivals:
        came[arrival.delivery_id] += 1
    for delivery, (_, state) in history.final.items():
        if state in REACHED and not came[delivery]:
            yield f"never sent: {delivery} is {state}, but no provider took it"
    claims = Counter(c.delivery_id for c in history.changes if c.after == "IN_FLIGHT" and c.before != "IN_FLIGHT")
    for delivery, times in came.items():
        if times > claims[delivery]:
            yield f"sent on its own: {delivery} was taken {times} times and claimed {claims[delivery]} times"
