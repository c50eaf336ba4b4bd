"""Describes the fault matrix in Markdown, from tests/faults/matrix.py and the record of the last run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.faults.matrix import (
    AT_ONCE_S,
    BREAKER_S,
    CALL_S,
    KEPT,
    LOOK_S,
    Call,
    Cell,
    Dependency,
    During,
    Promise,
    promise_of,
)
from tests.faults.test_fixed_cells import FIXED
from tests.support.tcp_relays import Fault
from tools.markdown import table

RECORD = Path(__file__).resolve().parent.parent / "docs" / "proof" / "fault_matrix.json"

FAULTS = {
    Fault.LATENCY: "each answer comes 500 ms late",
    Fault.JITTER: "each answer comes up to 500 ms late",
    Fault.STALLS: "one segment of a hundred is held for 200 ms, and those after it",
    Fault.RESET: "open connections are reset, and new ones as soon as they carry anything",
    Fault.BLACK_HOLE: "connections are made and carry nothing, then or later; neither side is told",
    Fault.HALF_OPEN: "open connections carry nothing any more; neither side is told; new ones work",
    Fault.SLOW_CLOSE: "the far side closes connections, a second old at most; the near side hears of it 2 s later",
}

HEAD = f"""# Fault matrix

The network to one dependency fails, in one of seven ways, while devices poll and follow streams, backends publish and
send, and sessions are refreshed. Each cell of the tables below is a promise, and a test:
`make prove ARGS="-k fault_matrix"` measures all, and `make check` the {len(FIXED)} that are marked with a star
(`tests/faults/test_fixed_cells.py`). The service is two servers and a worker as processes, on real PostgreSQL and
Valkey, with a fake FCM, an issuer's JWKS endpoint and a webhook over HTTP; before each of these is a TCP relay that
fails ([ADR 156](../adr/0156-network-faults-by-a-relay.md)). The promises are declared in `tests/faults/matrix.py`, the
figures come from [the record of the last run](../proof/fault_matrix.json).

## The faults

"""

RECOVERED_S = promise_of(Cell(Dependency.POSTGRES, Fault.RESET, Call.POLL)).recovered_s
SHOWN_S = promise_of(Cell(Dependency.FCM, Fault.RESET, Call.PUSH)).recovered_s
SEEN = f"what they bring about is seen within {LOOK_S:g} s"
REFUSED = "UNAVAILABLE, or RESOURCE_EXHAUSTED where a lost transaction is still in the way, with RetryInfo"
PROMISES = (
    ("at once", f"answered within {AT_ONCE_S:g} s; {SEEN}", "the same"),
    ("slower", f"answered within {CALL_S:g} s; {SEEN}", "at once"),
    ("or refused", f"answered or {REFUSED}, within {CALL_S:g} s", f"all is well within {RECOVERED_S:g} s, by itself"),
    (
        "accepted",
        f"SendNotification is answered within {AT_ONCE_S:g} s; the notification waits",
        f"shown within {SHOWN_S:g} s: a provider that fails rests for {BREAKER_S:g} s",
    ),
)

FIGURES = """
## The figures

The figure beside a promise is what was measured last. Of calls: the time of the slowest; where calls were refused, how
many, and the seconds from the end of the fault to the last that was refused or slow. Of pushes and streams: the longest
wait for a notification or a change, from its acceptance, or from the end of the fault where it may wait for that. A
cell without a figure has not been measured on a quiet machine yet.
"""


def page() -> str:
    """Return the page as Markdown."""
    measured = json.loads(RECORD.read_text(encoding="utf-8"))["cells"]
    kept = "".join(f"- {call}: {what}\n" for call, what in KEPT.items())
    parts = [
        HEAD,
        table(("fault", "meaning"), ((fault, FAULTS[fault]) for fault in Fault)),
        f"\n## The promises\n\nEach call has a deadline of {CALL_S:g} s, the default of clients and server.\n\n",
        table(("promise", "calls while the fault lasts", "afterwards"), PROMISES),
        f"\nNever lost, in any cell:\n\n{kept}",
        FIGURES,
    ]
    for dependency in Dependency:
        parts += [f"\n## {dependency}\n\n", table(("fault", *Call), rows(dependency, measured))]
    return "".join(parts)


def rows(dependency: Dependency, measured: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the rows of a dependency's table."""
    for fault in Fault:
        told = measured.get(dependency, {}).get(fault, {})
        yield [str(fault), *(text(Cell(dependency, fault, call), told.get(call, {})) for call in Call)]


def text(cell: Cell, told: Mapping[str, Any]) -> str:
    """Return a cell: its promise, and what was measured."""
    promise = promise_of(cell)
    mark = "\\*" if cell in FIXED else ""
    name = f"{name_of(promise, cell)}{mark}"
    return f"{name}: {figure(promise, cell, told)}" if told else name


def name_of(promise: Promise, cell: Cell) -> str:
    """Return the name of a promise, as the page explains it."""
    if promise.during is During.MAY_REFUSE:
        return "or refused"
    if cell.call is Call.PUSH and promise.effect_s is None:
        return "accepted"
    return "at once" if promise.within_s <= AT_ONCE_S else "slower"


def figure(promise: Promise, cell: Cell, told: Mapping[str, Any]) -> str:
    """Return what was measured, in a few words."""
    if cell.call is Call.STREAM or (cell.call is Call.PUSH and promise.during is During.ANSWERS):
        return f"{told['latest_effect_s' if promise.effect_s is not None else 'caught_up_s']:.1f} s"
    refused = sum(count for how, count in told.items() if how in ("refused with RetryInfo", "DEADLINE_EXCEEDED"))
    if refused:
        return f"{refused} refused, back in {told['recovered_s']:.1f} s"
    return f"{told['slowest_s']:.1f} s"
