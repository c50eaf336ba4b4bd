"""The checker of histories finds each fault that is planted, and nothing in what is good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.delivery_history import Arrival, Change, History, unended, violations

pytestmark = pytest.mark.unit


def change(before: str, after: str, process: str = "worker-1", lease: str = "lease-1", **fields: bool) -> Change:
    held = "IN_FLIGHT"
    return Change(
        "d", before, after, lease if before == held else None, lease if after == held else None, process, **fields
    )


CLAIMED, ENDED = change("PENDING", "IN_FLIGHT"), change("IN_FLIGHT", "SENT")
SHOWN = Arrival("d", "phone", "shown")
GOOD = History({"n": 1}, {"d": ("n", "SENT")}, [CLAIMED, ENDED], [SHOWN])
RESCUED = [
    CLAIMED,
    change("IN_FLIGHT", "PENDING", "worker-2", overdue=True),
    change("PENDING", "IN_FLIGHT", "worker-2", "lease-2"),
    change("IN_FLIGHT", "SENT", "worker-2", "lease-2"),
]
WOKEN = Arrival("d", "phone", "data")
ASKED_AGAIN = [CLAIMED, ENDED, change("SENT", "IN_FLIGHT", "worker-2", "lease-2")]
TWICE = [SHOWN, replace(SHOWN, effect="replaced")]


@pytest.mark.parametrize(
    "history",
    [
        GOOD,
        replace(GOOD, changes=RESCUED, arrivals=TWICE),
        replace(GOOD, final={"d": ("n", "OPENED")}, changes=[*GOOD.changes, change("SENT", "OPENED", "server")]),
        replace(GOOD, final={"d": ("n", "OPENED")}, changes=[CLAIMED, change("IN_FLIGHT", "OPENED", "server")]),
        replace(GOOD, final={"d": ("n", "PENDING")}, changes=[], arrivals=[]),
        replace(
            GOOD,
            changes=[*ASKED_AGAIN, change("IN_FLIGHT", "SENT", "worker-2", "lease-2")],
            arrivals=[WOKEN, WOKEN],
        ),
        replace(
            GOOD,
            changes=[*ASKED_AGAIN, change("IN_FLIGHT", "SENT", "worker-1", "lease-2", overdue=True)],
            arrivals=[WOKEN],
        ),
    ],
)
def test_history_checker_passes_a_good_history(history: History) -> None:
    assert violations(history) == []


PLANTED = {
    "lost: 1 deliveries of n": replace(GOOD, final={}, changes=[], arrivals=[]),
    "lost: 2 deliveries of n": replace(GOOD, accepted={"n": 2}),
    "lost: d is in no state": replace(GOOD, final={"d": ("n", "WHERE?")}),
    "stale: worker-1 ended d, which worker-2 held": replace(GOOD, changes=[*RESCUED[:3], ENDED], arrivals=TWICE),
    "stale: worker-2 ended d, which worker-1 held": replace(
        GOOD, changes=[CLAIMED, change("IN_FLIGHT", "SENT", "worker-2")]
    ),
    "stale: worker-2 ended d": replace(
        GOOD, changes=[CLAIMED, change("IN_FLIGHT", "PENDING", "worker-2"), CLAIMED, ENDED]
    ),
    "stale: worker-1 made d SENT without a lease": replace(
        GOOD, changes=[CLAIMED, RESCUED[1], change("PENDING", "SENT")]
    ),
    "revived: d went from SENT to PENDING": replace(GOOD, changes=[*GOOD.changes, change("SENT", "PENDING")]),
    "shown again: d shows something": replace(GOOD, changes=ASKED_AGAIN, arrivals=[SHOWN]),
    "taken back: d was sent and is DEAD": replace(
        GOOD,
        final={"d": ("n", "DEAD")},
        changes=[*ASKED_AGAIN, change("IN_FLIGHT", "DEAD", "worker-2", "lease-2")],
        arrivals=[WOKEN],
    ),
    "stale: worker-1 ended d, which worker-2": replace(
        GOOD, changes=[*ASKED_AGAIN, change("IN_FLIGHT", "SENT", lease="lease-2")], arrivals=[WOKEN]
    ),
    "stale: worker-2 ended d, which worker-1": replace(
        GOOD, changes=[CLAIMED, change("IN_FLIGHT", "SENT", "worker-2", overdue=True)]
    ),
    "shown twice: d came up 2 times on phone": replace(GOOD, changes=RESCUED, arrivals=[SHOWN, SHOWN]),
    "never sent: d is SENT": replace(GOOD, arrivals=[]),
    "sent on its own: d was taken 2 times and claimed 1 times": replace(GOOD, arrivals=TWICE),
}


@pytest.mark.parametrize(("found", "history"), PLANTED.items())
def test_history_checker_finds_each_planted_fault(found: str, history: History) -> None:
    assert any(violation.startswith(found) for violation in violations(history)), violations(history)


def test_history_checker_counts_waiting_deliveries() -> None:
    waiting = {str(n): ("n", state) for n, state in enumerate(("SENT", "PENDING", "IN_FLIGHT", "HELD", "SCHEDULED"))}
    assert unended(replace(GOOD, final=waiting)) == 4
