"""Twelve cells of the fault matrix, of each dependency, fault and call at least one; `make prove` measures all."""

from __future__ import annotations

import pytest
import pytest_asyncio

from syncbeat_devtools.embedded import EmbeddedStores
from tests.faults.matrix import Call, Cell, Dependency, promise_of
from tests.faults.measure import Times, conditions_of, measure_in_lanes
from tests.faults.verdicts import Seen, broken
from tests.support.tcp_relays import Fault

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

FIXED = (
    Cell(Dependency.JWKS, Fault.BLACK_HOLE, Call.POLL),
    Cell(Dependency.JWKS, Fault.BLACK_HOLE, Call.STREAM),
    Cell(Dependency.POSTGRES, Fault.RESET, Call.POLL),
    Cell(Dependency.POSTGRES, Fault.RESET, Call.PUBLISH),
    Cell(Dependency.POSTGRES, Fault.RESET, Call.REFRESH),
    Cell(Dependency.POSTGRES, Fault.JITTER, Call.PUSH),
    Cell(Dependency.REDIS, Fault.BLACK_HOLE, Call.POLL),
    Cell(Dependency.REDIS, Fault.BLACK_HOLE, Call.STREAM),
    Cell(Dependency.REDIS, Fault.HALF_OPEN, Call.PUBLISH),
    Cell(Dependency.FCM, Fault.SLOW_CLOSE, Call.PUSH),
    Cell(Dependency.FCM, Fault.LATENCY, Call.PUSH),
    Cell(Dependency.WEBHOOK, Fault.STALLS, Call.PUSH),
)
STORES = (Dependency.POSTGRES, Dependency.REDIS)
TIMES = Times(before_s=0.5, fault_s=dict.fromkeys(Dependency, 2.0), breaker_s=2.0, retry_s=0.5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def measured(stores: EmbeddedStores, template: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Cell, Seen]:
    """Everything that was seen of these cells, and of others on the way."""
    conditions = conditions_of(FIXED)
    lanes = {
        "stores": [one for one in conditions if one[0] in STORES],
        "others": [one for one in conditions if one[0] not in STORES],
    }
    return await measure_in_lanes(stores, template, tmp_path_factory.mktemp("faults"), lanes, TIMES)


@pytest.mark.parametrize("cell", FIXED, ids=str)
async def test_fault_matrix_cell_keeps_its_promise(cell: Cell, measured: dict[Cell, Seen]) -> None:
    assert broken(promise_of(cell, TIMES.breaker_s), measured[cell]) == []
