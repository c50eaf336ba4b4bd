"""Defines the state machine of a delivery as a table. Pure.

Every statement that writes `deliveries.state` takes the states it starts from and ends in from here: workers build
what they record with `update`, and SQL is put together from `states_before` and `state_after` (store/state_sql.py).
tests draw each row on PostgreSQL, and docs/reference/delivery-states.md is generated from the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from syncbeat_server.push.model import ClaimedDelivery, DeliveryState, DeliveryUpdate, Reason


class Event(StrEnum):
    """Something that happens to a delivery; the value is its label in the state diagram."""

    ACCEPT = "accepted"
    TRAIL = "accepted as the last of an open dedupe window"
    SUPPRESS = "accepted without a token, or muted"
    DEDUPE = "accepted in an open dedupe window"
    ACCEPT_CANCELLED = "written after its notification was cancelled"
    CLAIM = "claimed by a worker"
    CLOSE_WINDOW = "its dedupe window ended"
    SUPERSEDE = "its dedupe window ended with a later one"
    CANCEL = "cancelled by the caller"
    WITHDRAW = "user disabled or device gone"
    MERGE = "a later held one replaces it"
    SEND = "provider accepted it"
    RETRY = "attempt failed, retry later"
    REDIRECT = "token was replaced, send to the new one"
    POSTPONE = "no attempt possible now"
    HOLD = "held back"
    REJECT = "attempt failed for good"
    LACK_TOKEN = "device has no token"  # noqa: S105  # a label, no secret
    EXPIRE = "time to live over"
    MISS = "now-or-never attempt failed"
    SKIP = "muted or replaced"
    DROP = "user disabled or change already seen"
    KEEP_SENT = "resend not made, or failed"
    END_CANCELLED = "attempt ended unsent"
    LOSE_LEASE = "lease expired"
    RELEASE = "worker stopped"
    RESEND = "no answer, sent again"
    RECEIVE = "device acknowledged it"
    OPEN = "user opened it"
    REDRIVE = "redriven"


class Guard(StrEnum):
    """A condition that tells rows of one event apart."""

    ALWAYS = ""
    SENT_BEFORE = "it was a resend"
    CANCELLED_MEANWHILE = "cancelled meanwhile"
    ATTEMPTED = "after an attempt"


class Carried(Enum):
    """A reason that is not fixed: the one the delivery has, or the one it was cancelled with while in flight."""

    SAME = "unchanged"
    OF_CANCEL = "that of the cancel"


class Attempts(Enum):
    """Effect on the number of attempts."""

    SAME = 0
    COUNTED = 1
    GIVEN_BACK = -1
    RESET = None


@dataclass(frozen=True, slots=True)
class Transition:
    """One row: each of `statements`, functions of push/store, takes a delivery from a state of `before` to `after`.

    Without a state before, the statement inserts the delivery. `reasons` are those that it may set.
    """

    before: tuple[DeliveryState, ...]
    event: Event
    after: DeliveryState
    reasons: tuple[Reason, ...] | Carried
    attempts: Attempts
    statements: tuple[str, ...]
    guard: Guard = Guard.ALWAYS


_S, _R = DeliveryState, Reason  # so that a row of the table fits a line

_NEW: tuple[DeliveryState, ...] = ()
_WAITING = (_S.PENDING, _S.HELD, _S.SCHEDULED)
_IN_FLIGHT = (_S.IN_FLIGHT,)
_FAILED = (_S.SUPPRESSED, _S.EXPIRED, _S.DEAD, _S.CANCELLED)
_ARRIVED = (_S.PENDING, _S.HELD, *_IN_FLIGHT, _S.SENT, *_FAILED)
_NO_REASON = (_R.NONE,)
CALLED_DEAD = (_R.UNREGISTERED, _R.WRONG_SENDER, _R.REJECTED)
"""The reasons with which a provider refuses a delivery for good."""
_DEDUPED = ("notifications.insert_deliveries",)
_INSERT = (*_DEDUPED, "alerts.insert")
_FINISH = ("queue.finish",)
_ACKNOWLEDGE = ("lifecycle.acknowledge",)

TRANSITIONS: tuple[Transition, ...] = (
    Transition(_NEW, Event.ACCEPT, _S.PENDING, _NO_REASON, Attempts.SAME, _INSERT),
    Transition(_NEW, Event.TRAIL, _S.SCHEDULED, (_R.TRAILING,), Attempts.SAME, _INSERT),
    Transition(_NEW, Event.SUPPRESS, _S.SUPPRESSED, (_R.NO_TOKEN, _R.MUTED), Attempts.SAME, _INSERT),
    Transition(_NEW, Event.DEDUPE, _S.SUPPRESSED, (_R.MERGED, _R.DUPLICATE), Attempts.SAME, _DEDUPED),
    Transition(_NEW, Event.ACCEPT_CANCELLED, _S.CANCELLED, _NO_REASON, Attempts.SAME, _INSERT),
    Transition(_WAITING, Event.CLAIM, _S.IN_FLIGHT, Carried.SAME, Attempts.COUNTED, ("queue.claim",)),
    Transition(
        _IN_FLIGHT,
        Event.CLOSE_WINDOW,
        _S.IN_FLIGHT,
        _NO_REASON,
        Attempts.SAME,
        ("dedupe_windows.close_trailed", "dedupe_windows.close_alerts"),
    ),
    Transition(
        _IN_FLIGHT, Event.SUPERSEDE, _S.IN_FLIGHT, (_R.MERGED,), Attempts.SAME, ("dedupe_windows.close_alerts",)
    ),
    # A cancel of what is in flight is noted in `called_back` and takes effect when the attempt ends: END_CANCELLED.
    Transition(_WAITING, Event.CANCEL, _S.CANCELLED, _NO_REASON, Attempts.SAME, ("lifecycle.cancel",)),
    Transition(
        _WAITING,
        Event.WITHDRAW,
        _S.CANCELLED,
        (_R.USER_DISABLED, _R.DEVICE_GONE),
        Attempts.SAME,
        ("lifecycle.cancel_waiting",),
    ),
    Transition(
        (_S.HELD,),
        Event.MERGE,
        _S.SUPPRESSED,
        (_R.MERGED,),
        Attempts.SAME,
        ("wake_budgets.merge_held", "alerts.merge_held"),
    ),
    Transition(_IN_FLIGHT, Event.SEND, _S.SENT, _NO_REASON, Attempts.SAME, _FINISH),
    Transition(
        _IN_FLIGHT,
        Event.RETRY,
        _S.PENDING,
        (_R.NONE, _R.UNAVAILABLE, _R.THROTTLED, _R.AMBIGUOUS),
        Attempts.SAME,
        _FINISH,
    ),
    Transition(_IN_FLIGHT, Event.REDIRECT, _S.PENDING, _NO_REASON, Attempts.SAME, _FINISH),
    Transition(
        _IN_FLIGHT,
        Event.POSTPONE,
        _S.PENDING,
        (_R.NONE, _R.PROVIDER_CONFIG, _R.UNAVAILABLE),
        Attempts.GIVEN_BACK,
        _FINISH,
    ),
    Transition(
        _IN_FLIGHT,
        Event.HOLD,
        _S.HELD,
        (_R.LIVE_STREAM, _R.QUIET_HOURS, _R.DAILY_MAXIMUM, _R.WAKE_BUDGET),
        Attempts.GIVEN_BACK,
        _FINISH,
    ),
    Transition(_IN_FLIGHT, Event.REJECT, _S.DEAD, (*CALLED_DEAD, _R.RETRIES_EXHAUSTED), Attempts.SAME, _FINISH),
    Transition(_IN_FLIGHT, Event.LACK_TOKEN, _S.DEAD, (_R.NO_TOKEN,), Attempts.GIVEN_BACK, _FINISH),
    Transition(_IN_FLIGHT, Event.EXPIRE, _S.EXPIRED, _NO_REASON, Attempts.GIVEN_BACK, _FINISH),
    Transition(_IN_FLIGHT, Event.MISS, _S.EXPIRED, _NO_REASON, Attempts.SAME, _FINISH),
    Transition(_IN_FLIGHT, Event.SKIP, _S.SUPPRESSED, (_R.MERGED, _R.MUTED, _R.REPLACED), Attempts.GIVEN_BACK, _FINISH),
    Transition(_IN_FLIGHT, Event.DROP, _S.CANCELLED, (_R.USER_DISABLED, _R.ALREADY_SEEN), Attempts.GIVEN_BACK, _FINISH),
    Transition(_IN_FLIGHT, Event.KEEP_SENT, _S.SENT, (_R.NONE, *CALLED_DEAD), Attempts.GIVEN_BACK, _FINISH),
    *(
        Transition(
            _IN_FLIGHT,
            Event.END_CANCELLED,
            _S.CANCELLED,
            Carried.OF_CANCEL,
            attempts,
            _FINISH,
            Guard.CANCELLED_MEANWHILE,
        )
        for attempts in (Attempts.SAME, Attempts.GIVEN_BACK)
    ),
    *(
        Transition(_IN_FLIGHT, event, after, reasons, attempts, (statement,), guard)
        for event, attempts, statement in (
            (Event.LOSE_LEASE, Attempts.SAME, "queue.rescue"),
            (Event.RELEASE, Attempts.GIVEN_BACK, "queue.release"),
        )
        for after, reasons, guard in (
            (_S.PENDING, Carried.SAME, Guard.ALWAYS),
            (_S.SENT, Carried.SAME, Guard.SENT_BEFORE),
            (_S.CANCELLED, Carried.OF_CANCEL, Guard.CANCELLED_MEANWHILE),
        )
    ),
    Transition((_S.SENT,), Event.RESEND, _S.IN_FLIGHT, Carried.SAME, Attempts.COUNTED, ("resends.settle",)),
    # The device knows better than we do: one that was in flight, or given up as ambiguous, has arrived after all.
    Transition(_ARRIVED, Event.RECEIVE, _S.RECEIVED, _NO_REASON, Attempts.SAME, _ACKNOWLEDGE, Guard.ATTEMPTED),
    Transition(
        (*_ARRIVED, _S.RECEIVED), Event.OPEN, _S.OPENED, _NO_REASON, Attempts.SAME, _ACKNOWLEDGE, Guard.ATTEMPTED
    ),
    Transition((_S.DEAD,), Event.REDRIVE, _S.PENDING, _NO_REASON, Attempts.RESET, ("lifecycle.redrive",)),
)

_BY_EVENT: dict[tuple[Event, Guard], Transition] = {(row.event, row.guard): row for row in TRANSITIONS}


def states_before(event: Event) -> tuple[DeliveryState, ...]:
    """Return the states in which the event can happen to a delivery, in the table's order."""
    return tuple(dict.fromkeys(state for row in TRANSITIONS if row.event is event for state in row.before))


def state_after(event: Event, guard: Guard = Guard.ALWAYS) -> DeliveryState:
    """Return the state that the event leads to. Raises KeyError if the table has no such row."""
    return _BY_EVENT[event, guard].after


def reason_after(event: Event) -> Reason:
    """Return the reason that the event sets.

    Raises:
        ValueError: the event has several, or keeps the one there is.
    """
    reasons = _BY_EVENT[event, Guard.ALWAYS].reasons
    if isinstance(reasons, Carried) or len(reasons) != 1:
        raise ValueError(f"{event.name} sets no single reason")
    return reasons[0]


def update(
    delivery: ClaimedDelivery,
    event: Event,
    reason: Reason | None = None,
    *,
    provider_message_id: str = "",
    due_in_s: float = 0.0,
    extends_ttl: bool = False,
    invalid_token: bool = False,
) -> DeliveryUpdate:
    """Return what is to be recorded of a claimed delivery to which the event has happened.

    `reason` may be left out where the table has only one; the other arguments are described at `DeliveryUpdate`.

    Raises:
        ValueError: the table does not know the reason for this event.
    """
    row = _BY_EVENT[event, Guard.ALWAYS]
    given = reason_after(event) if reason is None else reason
    if isinstance(row.reasons, Carried) or given not in row.reasons:
        raise ValueError(f"{event.name} does not set the reason {given!r}")
    return DeliveryUpdate(
        delivery,
        row.after,
        given,
        provider_message_id,
        due_in_s,
        give_back_attempt=row.attempts is Attempts.GIVEN_BACK,
        extends_ttl=extends_ttl,
        redirected=event is Event.REDIRECT,
        invalid_token=invalid_token,
    )
