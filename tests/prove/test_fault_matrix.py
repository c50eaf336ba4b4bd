"""Every cell of the fault matrix: the network to each dependency fails in each way, while everybody calls.

Each dependency but Redis has a service of its own, all at the same time: a fault that opens a breaker takes a minute
and a half.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from syncbeat_devtools.embedded import EmbeddedStores
from tests.faults.matrix import CALL_S, Cell, Dependency, cells, promise_of
from tests.faults.measure import Times, conditions_of, measure_in_lanes
from tests.faults.verdicts import Seen, broken

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1_200), pytest.mark.asyncio(loop_scope="module")]

CELLS = tuple(cells())
RECORD = Path(__file__).parents[2] / "docs" / "proof" / "fault_matrix.json"
# Longer than a statement, a fetch or an attempt waits: so that all that is under way when it begins ends before it.
TIMES = Times(
    before_s=2.0,
    fault_s={
        Dependency.POSTGRES: 12.0,
        Dependency.REDIS: 8.0,
        Dependency.JWKS: 8.0,
        Dependency.FCM: 15.0,
        Dependency.WEBHOOK: 15.0,
    },
)
Record = Callable[[str, dict[str, object]], None]
LANES = {
    "stores": (Dependency.POSTGRES, Dependency.REDIS),
    "jwks": (Dependency.JWKS,),
    "fcm": (Dependency.FCM,),
    "webhook": (Dependency.WEBHOOK,),
}


def cells_of(request: pytest.FixtureRequest) -> list[Cell]:
    """Return the cells that this run selected, so that `-k` measures no others."""
    names = {item.name for item in request.session.items}
    return [cell for cell in CELLS if any(f"[{cell}]" in name for name in names)]


def updated(record: Record, measured: Mapping[Cell, Seen]) -> None:
    """Write down what was measured; the figures of other cells stay as they were."""
    figures = json.loads(RECORD.read_text())["cells"] if RECORD.exists() else {}
    for cell, seen in measured.items():
        told = {**seen.figures(), "kept": not broken(promise_of(cell), seen)}
        figures.setdefault(cell.dependency, {}).setdefault(cell.fault, {})[cell.call] = told
    command = "make prove ARGS='-k fault_matrix'"
    record("fault_matrix", {"command": command, "deadline_s": CALL_S, "fault_s": TIMES.fault_s, "cells": figures})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def measured(
    request: pytest.FixtureRequest,
    stores: EmbeddedStores,
    template: str,
    tmp_path_factory: pytest.TempPathFactory,
    record: Record,
) -> dict[Cell, Seen]:
    """Everything that was seen, and is recorded as it comes."""
    wanted = conditions_of(cells_of(request))
    lanes = {name: [one for one in wanted if one[0] in of] for name, of in LANES.items()}
    folder = tmp_path_factory.mktemp("faults")
    return await measure_in_lanes(stores, template, folder, lanes, TIMES, partial(updated, record))


@pytest.mark.parametrize("cell", CELLS, ids=str)
async def test_fault_matrix_cell(cell: Cell, measured: dict[Cell, Seen]) -> None:
    assert broken(promise_of(cell), measured[cell]) == []
