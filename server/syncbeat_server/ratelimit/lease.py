"""Keeps the state of one bucket in one process: what may be used without asking, and what the bucket was told to hold.

`balance` is what calls may use at once. It is the sum of two things: units that Redis has granted already (a lease),
and the `credit`, units that may be used first and are charged after. So `balance - credit` is what Redis has charged
this process for and it has not used (positive), or what it has used and Redis does not know of yet (negative).
"""

from __future__ import annotations

import math
from asyncio import Future
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

from syncbeat_server.ratelimit.model import LimitSubject, MethodClass, Rate
from syncbeat_server.ratelimit.policy.decision import Decision, decide
from syncbeat_server.ratelimit.policy.gcra import bound_of, most_used, used_at
from syncbeat_server.ratelimit.policy.local_share import local_rate, share_of
from syncbeat_server.storage.redis.shared_rates import HELD_S, Answer, Ask

LEASE_S = 0.25
"""Seconds for which granted units are kept unused before they are given back."""
BELIEVED_S = 0.5
"""Seconds for which a bucket is taken to be as full as Redis told, but for what has drained."""
_CREDIT_SHARE = 0.05
"""Of a burst: what all processes together may use before it is charged. So much may be admitted too early."""
_UNTOLD_SHARE = 0.02
"""Of a burst: what all processes together may have used without telling Redis, until more of it is used."""
_SLICE_SHARE = 1 / 32
"""Of a burst: the most that one process keeps for the calls to come. What all processes keep is missing elsewhere."""
_MOST_HELD_S = 4 * HELD_S
"""Seconds for which a call is asked for again while the last units of a bucket are held, which may begin anew."""


@dataclass(frozen=True, eq=False)
class LimitRule:
    """A rate and the prefix of the keys it is counted under. One object a rule: it is compared by identity."""

    prefix: str
    rate: Rate
    subject: LimitSubject
    method_class: MethodClass


class Refused(NamedTuple):
    """A refusal, and the rule that it comes from."""

    rule: LimitRule
    decision: Decision


LeaseKey = tuple[LimitRule, *tuple[str, ...]]
"""The rule, and the names of the one that is limited, such as user and device."""


class Waiter(NamedTuple):
    """A call that waits for `cost` units: its future is None once it has them.

    From `ends_at` on (monotonic seconds) it is not asked for again, whatever Redis answers.
    """

    cost: float
    future: Future[Refused | None]
    ends_at: float = math.inf


@dataclass(frozen=True)
class LeaseRule:
    """Bounds of the leases of a process."""

    max_keys: int = 50_000
    """Buckets kept in memory, of half a KiB each; those used least recently go."""
    report_s: float = 0.02
    """Seconds within which use on credit is charged, and leases that run low are renewed."""
    answer_s: float = 0.5
    """Seconds that an answer of Redis is waited for; a call waits for two answers, or while last units are held for
    `_MOST_HELD_S` and one more."""
    max_waiting: int = 10_000
    probe_s: float = 1.0
    """Seconds between two tries while Redis is away."""
    settle_s: float = 2.5
    """Seconds after its return in which processes tell what they used meanwhile, before any of them asks for more."""
    count_s: float = 5.0
    """Seconds between two counts of the processes."""


class Lease:
    """The state of one bucket in this process. Times are monotonic seconds."""

    __slots__ = (
        "asked_at",
        "balance",
        "bound",
        "credit",
        "drained_at",
        "era",
        "is_queued",
        "key",
        "line",
        "line_of_one",
        "low",
        "owed",
        "peak",
        "processes",
        "rate",
        "rule",
        "speed",
        "until",
        "untold",
        "used",
        "used_at_s",
        "waiters",
    )

    def __init__(self, key: LeaseKey, now: float, processes: int) -> None:
        self.rule = rule = key[0]
        self.key = rule.prefix + "\x1f".join(map(_plain, key[1:]))
        self.line = f"{self.key}\t{rule.rate.per_second:.9g} {rule.rate.burst} {most_used(rule.rate):.9g}"
        self.line_of_one = f"{self.line} 1"
        self.rate = rule.rate
        self.bound = bound_of(rule.rate)
        self.processes = processes
        self.credit = self.balance = self.peak = credit_of(rule.rate, processes)
        self.untold = _share_of_burst(rule.rate, _UNTOLD_SHARE, processes)
        self.low = self.credit - self.untold
        self.until = math.inf
        self.used, self.used_at_s = 0.0, now
        self.asked_at, self.speed = now, 0.0
        self.waiters: list[Waiter] = []
        self.is_queued = False
        self.drained_at, self.era, self.owed = now, 0, 0.0

    @property
    def reserve(self) -> float:
        """Return the units that are charged and not used; negative: used and not charged."""
        return self.balance - self.credit

    def awaited(self, cost: float) -> float:
        """Return the units that calls wait for of which none costs more than `cost`: one that does may be refused."""
        return sum(one.cost for one in self.waiters if one.cost <= cost and not one.future.done())

    def used_by_others(self, now: float) -> float:
        """Return the units in use now that are not free for a call here: as Redis told, less what has drained since."""
        drained = max(0.0, now - self.used_at_s) * self.rate.per_second
        return max(0.0, self.used - drained) - self.reserve

    def renew_credit(self, used: float, processes: int) -> None:
        """Allow use on credit while a bucket is at most half in use, and else not."""
        self.processes = processes
        credit = untold = 0.0
        if used <= self.rate.burst / 2:
            credit, untold = credit_of(self.rate, processes), _share_of_burst(self.rate, _UNTOLD_SHARE, processes)
        self.low += credit - untold - (self.credit - self.untold)
        self.balance += credit - self.credit
        self.credit, self.untold = credit, untold

    def book(self, debt: float, answer: Answer, now: float, processes: int) -> None:
        """Take what Redis granted and told, once it has charged `debt`."""
        self.used, self.used_at_s = answer.used, now
        credit = self.credit
        self.renew_credit(answer.used, processes)
        self.balance += debt + answer.granted
        self.peak += debt + answer.granted + self.credit - credit

    def decide_waiter(self, waiter: Waiter, now: float) -> Decision:
        """Decide a call after an answer that did not give it enough: refused, or `allowed`, to be asked for again.

        A refusal tells when there will be room, or when last units that are held will be free.
        """
        used = self.used_by_others(now)
        decision = decide(self.bound, used, waiter.cost)
        if not decision.allowed or now < waiter.ends_at:
            return decision
        return decide(self.bound, used, 0.0)._replace(allowed=False, wait_s=HELD_S)

    def wait_again(self, waiter: Waiter, now: float) -> None:
        """Let a call be asked for again, though not for ever."""
        self.waiters.append(waiter._replace(ends_at=min(waiter.ends_at, now + _MOST_HELD_S)))

    def unpay(self, units: float) -> None:
        """Owe units again that were taken for charged, and could not be told to Redis."""
        self.balance -= units
        self.peak -= units

    def slice_for(self, now: float) -> float:
        """Return how many units to keep for the calls to come, by how many came since this was asked last."""
        passed = (now - self.asked_at) / LEASE_S
        self.speed = self.speed * max(0.0, 1.0 - passed) + max(0.0, self.peak - self.balance) / LEASE_S
        self.asked_at, self.peak = now, self.balance
        # Half of what comes while a lease lasts: nothing for one call alone, or each poll would be asked for twice.
        return float(int(min(self.speed * LEASE_S / 2, self.rate.burst * _SLICE_SHARE)))

    def prepare(self, now: float, processes: int, *, may_want: bool) -> PreparedAsk:
        """Return what to ask Redis: what to charge or give back, and unless it is too early, what is wanted."""
        rate, reserve, kept = self.rate, self.reserve, self.slice_for(now)
        charged = debt = max(0.0, -reserve)
        if reserve > 0.0 and now >= self.until:
            charged, reserve = -reserve, 0.0
            self.balance = self.peak = self.credit
            self.until = math.inf
        owed, self.owed = self.owed, 0.0
        if owed:  # less what has drained since
            owed = min(owed, used_at(local_rate(rate, share_of(processes)), self.drained_at, now))
        self.low = self.credit + kept / 2 if kept else self.credit - self.untold
        waiting = [one.cost for one in self.waiters if not one.future.done()]
        held = (processes - 1) * credit_of(rate, processes)
        has = max(0.0, reserve)
        least = max(0.0, waiting[0] - has) if waiting else 1.0
        wanted = max(0.0, sum(waiting) + kept - has) if may_want else 0.0
        if least > rate.burst / 2 - held:
            # Nothing would end what is held back from it as long as the bucket is at most half full.
            wanted, held = min(wanted, least), 0.0
        figures = rate.per_second, rate.burst, most_used(rate)
        return PreparedAsk(self, Ask(self.key, *figures, charged + owed, least, wanted, held), debt, owed)


class PreparedAsk(NamedTuple):
    """Holds the ask of a bucket, the debt that its answer settles, and what was used without Redis."""

    lease: Lease
    ask: Ask
    debt: float
    owed: float


Want = tuple[LeaseKey, float]
"""A bucket and the units that a call wants of it."""


Charge = tuple[Lease, float]
"""The bucket itself, and the units."""


class PendingTake:
    """A call that has taken what was in memory and waits for the rest."""

    __slots__ = ("held", "waits")

    def __init__(self) -> None:
        self.held: list[tuple[Lease, float]] = []
        self.waits: list[tuple[Lease, float, Future[Refused | None]]] = []


def _plain(name: str) -> str:
    """Return a name without control characters, which part names and lines; no two names become the same."""
    return name if name.isprintable() and "%" not in name else quote(name)


def credit_of(rate: Rate, processes: int) -> float:
    """Return how many units one of the processes may use before they are charged: so few that all hardly err.

    None of a small burst, of which one call in each process is a large part.
    """
    return _share_of_burst(rate, _CREDIT_SHARE, processes)


def _share_of_burst(rate: Rate, share: float, processes: int) -> float:
    return float(int(rate.burst * share / processes)) if rate.per_second > 0.0 else 0.0


def strictest(refusals: Sequence[Refused]) -> Refused:
    """Return the refusal that a caller is told of several: the one with the longest wait."""
    return max(refusals, key=lambda one: one.decision.wait_s)
