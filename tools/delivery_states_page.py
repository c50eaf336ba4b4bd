"""Draws the states of a delivery and lists its transitions in Markdown, from push/policy/transitions.py."""

from __future__ import annotations

from syncbeat_server.push.model import DeliveryState
from syncbeat_server.push.policy.transitions import TRANSITIONS, Attempts, Carried, Event, Guard, Transition

# Acknowledgements lead from every state in which an attempt was made, so their arrows would hide all the others.
NOT_DRAWN = {Event.RECEIVE: DeliveryState.SENT, Event.OPEN: DeliveryState.RECEIVED}
ATTEMPTS = {
    Attempts.SAME: "unchanged",
    Attempts.COUNTED: "+1",
    Attempts.GIVEN_BACK: "-1",
    Attempts.RESET: "0",
}
HEAD = """# Delivery states

A notification has one delivery for each device. Its state changes only as this page says: every statement that writes
a state takes it from the table in `push/policy/transitions.py`, from which the page is generated. A test draws each row
on PostgreSQL, and finds no statement that leads anywhere else.

`SCHEDULED`, `HELD` and `PENDING` deliveries wait until they are due. `IN_FLIGHT` ones are leased by a worker. The
others have ended, but an acknowledgement of the device still counts, an unanswered silent wake-up that was `SENT` is
sent again, and `DEAD` ones can be redriven. A delivery is deleted with its user, or some time after its notification
ended.
"""
TABLE = """
## Transitions

The reason is what `Delivery.reason` says afterwards; empty where the state says it all. The last column says what the
change does to the number of attempts, of which a claim counts one: it is given back when none was made.

| from | event | to | reason | attempts | written by |
| --- | --- | --- | --- | --- | --- |
"""


def page() -> str:
    """Return the page as Markdown."""
    rows = "".join(table_row(row) for row in TRANSITIONS)
    return f"{HEAD}\n{diagram()}{TABLE}{rows}"


def diagram() -> str:
    """Return the state diagram for mermaid: one arrow for each pair of states, with all its events."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for row in TRANSITIONS:
        for before in row.before or ("[*]",):
            if before == row.after or NOT_DRAWN.get(row.event, before) != before:
                continue
            labels = arrows.setdefault((before, row.after), [])
            if label(row) not in labels:
                labels.append(label(row))
    lines = [f"    {before} --> {after}: {'<br>'.join(labels)}" for (before, after), labels in arrows.items()]
    drawn = "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])
    return f"{drawn}\n\nAcknowledgements are drawn from `SENT` and `RECEIVED` only; the table has the other states.\n"


def label(row: Transition) -> str:
    """Return the event of a row, with its guard."""
    return f"{row.event}, {row.guard}" if row.guard is not Guard.ALWAYS else str(row.event)


def table_row(row: Transition) -> str:
    """Return a row of the table, for all states before together."""
    before = ", ".join(f"`{state}`" for state in row.before) or "(new)"
    if isinstance(row.reasons, Carried):
        reasons = row.reasons.value
    else:
        reasons = ", ".join(f"`{reason}`" if reason else "(empty)" for reason in row.reasons)
    statements = ", ".join(f"`{statement}`" for statement in row.statements)
    cells = (before, label(row), f"`{row.after}`", reasons, ATTEMPTS[row.attempts], statements)
    return f"| {' | '.join(cells)} |\n"
