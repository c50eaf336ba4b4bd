"""Plans the events of a batch once they are looked up: which are new, which came before, which are late. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from syncbeat_server.errors import EventIdReused
from syncbeat_server.events.model import (
    NO_RESULT,
    EffectResult,
    EventKey,
    EventState,
    IncomingEvent,
    IngestResult,
    OrderKey,
    Receipt,
)
from syncbeat_server.events.policy.order import OrderHead, arrival_time, is_stale, order_head
from syncbeat_server.events.store.event_batches import HeadMove, KnownEvent, LookUp, NewEvent


class RunAloneError(Exception):
    """The event needs a transaction of its own: it FAILED before, or it fails now."""


Outcome = IngestResult | EventIdReused | RunAloneError


@dataclass(slots=True)
class BatchPlan:
    """Holds what each event of a batch comes to, by its place.

    `new` are the places of the events to record, with the times at which they occurred; of those `stale` have no
    effects. `same_as` are places of repetitions within the batch, with that of the first.
    """

    events: Sequence[IncomingEvent]
    found: LookUp
    new: dict[int, datetime] = field(default_factory=dict)
    stale: set[int] = field(default_factory=set)
    same_as: dict[int, int] = field(default_factory=dict)
    answered: dict[int, Outcome] = field(default_factory=dict)
    repetitions: Counter[EventKey] = field(default_factory=Counter)
    heads: dict[OrderKey, OrderHead] = field(default_factory=dict)

    @property
    def accepted(self) -> list[int]:
        """Return the places of the events whose effects are to be carried out."""
        return [place for place in self.new if place not in self.stale]

    def moves(self) -> list[HeadMove]:
        """Return the moves of the orders' heads."""
        return [HeadMove(key, head, key not in self.found.heads) for key, head in sorted(self.heads.items())]

    def records(self, results: dict[int, EffectResult]) -> list[NewEvent]:
        """Return the new events as they are recorded, with the results of those whose effects were carried out."""
        again = Counter(self.same_as.values())
        return [
            NewEvent(self.events[place], occurred_at, self._state(place), again[place], results.get(place, NO_RESULT))
            for place, occurred_at in self.new.items()
        ]

    def outcomes(self, results: dict[int, EffectResult]) -> list[Outcome]:
        """Return the answer to each event."""
        answers = dict(self.answered)
        for place in self.new:
            state = self._state(place)
            receipt = Receipt(state, state, self.found.now)
            answers[place] = IngestResult(receipt, results.get(place, NO_RESULT))
        for place, first in self.same_as.items():
            known = answers[first]
            if isinstance(known, IngestResult):
                receipt = Receipt(EventState.DUPLICATE, known.receipt.event_state, self.found.now)
                known = IngestResult(receipt, known.result)
            answers[place] = known
        return [answers[place] for place in range(len(self.events))]

    def _state(self, place: int) -> EventState:
        return EventState.STALE if place in self.stale else EventState.ACCEPTED


def plan_batch(events: Sequence[IncomingEvent], found: LookUp) -> BatchPlan:
    """Decide about each event in the order in which they came, as if all effects could be carried out."""
    plan = BatchPlan(events, found)
    first_of: dict[EventKey, int] = {}
    for place, event in enumerate(events):
        known = found.known.get(event.key)
        if known is not None:
            plan.answered[place] = _answer_known(plan, event, known)
        elif (first := first_of.setdefault(event.key, place)) == place:
            _plan_new(plan, place)
        elif events[first].content_hash == event.content_hash:
            plan.same_as[place] = first
        else:
            plan.answered[place] = event_id_reused()
    return plan


def event_id_reused() -> EventIdReused:
    """Return the error of an event whose id came before with other content."""
    return EventIdReused("this source told of another event under this id before")


def duplicate(known: KnownEvent) -> IngestResult:
    """Return the answer to a repetition of a recorded event."""
    receipt = Receipt(EventState.DUPLICATE, known.state, known.first_seen_at, known.failure)
    return IngestResult(receipt, known.result)


def _answer_known(plan: BatchPlan, event: IncomingEvent, known: KnownEvent) -> Outcome:
    if known.content_hash != event.content_hash:
        return event_id_reused()
    if known.state is EventState.FAILED:
        return RunAloneError()
    plan.repetitions[event.key] += 1
    return duplicate(known)


def _plan_new(plan: BatchPlan, place: int) -> None:
    event, order = plan.events[place], plan.events[place].order
    head = None if order is None else plan.heads.get(order) or plan.found.heads.get(order)
    occurred_at = event.occurred_at or arrival_time(plan.found.now, head)
    plan.new[place] = occurred_at
    if order is None:
        return
    at = order_head(occurred_at, event.event_id)
    if is_stale(at, head):
        plan.stale.add(place)
    else:
        plan.heads[order] = at
