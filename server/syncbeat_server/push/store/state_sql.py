"""Spells the states of the transition table as SQL literals.

Literals and no parameters: the partial indexes on `state` are used only where the planner sees the constants.
"""

from __future__ import annotations

from collections.abc import Iterable

from syncbeat_server.push.model import DeliveryState
from syncbeat_server.push.policy.transitions import Event, Guard, reason_after, state_after, states_before


def state_list(states: Iterable[DeliveryState]) -> str:
    """Return the states as the right side of IN: `('PENDING', 'HELD')`."""
    quoted = ", ".join(f"'{state}'" for state in states)
    return f"({quoted})"


def becomes(event: Event, guard: Guard = Guard.ALWAYS) -> str:
    """Return the literal of the state that an event leads to."""
    return f"'{state_after(event, guard)}'"


def with_reason(event: Event) -> str:
    """Return the literal of the reason that an event sets."""
    return f"'{reason_after(event)}'"


WAITING = state_list(states_before(Event.CLAIM))
"""The states of what is still to be claimed, in the order in which the index on due deliveries lists them."""

IN_FLIGHT = becomes(Event.CLAIM)

UNFINISHED = state_list((*states_before(Event.CLAIM), state_after(Event.CLAIM)))

_HANDED_OVER = (DeliveryState.SENT, DeliveryState.RECEIVED, DeliveryState.OPENED)

HANDED_OVER = state_list(_HANDED_OVER)
"""The states of what the provider took."""

ATTEMPTED = state_list((state_after(Event.CLAIM), *_HANDED_OVER))
"""The states of what was handed over, or is in flight."""
