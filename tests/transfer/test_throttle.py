"""Batches find their size by how long they take, and give way to a busy database."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.transfer.importing.report import MAX_MISFIT_ROWS, OTHERS, ImportReport, read_report
from syncbeat_server.transfer.importing.throttle import Throttle, ThrottleRule
from syncbeat_server.transfer.model import MisfitReason

pytestmark = pytest.mark.unit

RULE = ThrottleRule(target_s=0.2, least=10, most=1_000, busy_ratio=3.0, longest_pause_s=1.0)


def _run(throttle: Throttle, place_s: float, batches: int, overhead_s: float = 0.005) -> list[float]:
    """Write so many full batches, whose places take so long; return the pauses."""
    return [throttle.observe(throttle.batch_size, overhead_s + place_s * throttle.batch_size) for _ in range(batches)]


def test_batches_grow_to_the_target_and_stay_there() -> None:
    throttle = Throttle(RULE)

    pauses = _run(throttle, 0.0005, 40)

    assert 250 <= throttle.batch_size <= 400  # 0.2 s are 390 places
    assert not any(pauses)


def test_batches_are_bounded() -> None:
    throttle = Throttle(RULE)
    _run(throttle, 1e-6, 60)
    assert throttle.batch_size == RULE.most
    _run(throttle, 1.0, 60)
    assert throttle.batch_size == RULE.least


def test_busy_database_gets_smaller_batches_and_pauses() -> None:
    throttle = Throttle(RULE)
    _run(throttle, 0.0005, 40)
    before = throttle.batch_size

    pauses = _run(throttle, 0.005, 4)

    assert throttle.batch_size < before / 4
    assert pauses[0] > 0.2
    assert max(pauses) <= RULE.longest_pause_s


def test_slower_places_are_the_new_normal_after_a_while() -> None:
    throttle = Throttle(RULE)
    _run(throttle, 0.0005, 40)

    pauses = _run(throttle, 0.005, 400)

    assert not any(pauses[-100:])


@given(st.lists(st.tuples(st.integers(1, 2_000), st.floats(0.0, 100.0)), max_size=50))
def test_sizes_and_pauses_are_bounded_whatever_is_observed(observed: list[tuple[int, float]]) -> None:
    throttle = Throttle(RULE)

    for places, elapsed_s in observed:
        assert 0.0 <= throttle.observe(places, elapsed_s) <= RULE.longest_pause_s
        assert RULE.least <= throttle.batch_size <= RULE.most


def test_reports_are_bounded_and_survive_their_json() -> None:
    report = ImportReport(written=3, present=1)
    for number in range(MAX_MISFIT_ROWS + 50):
        report.count_misfit(f"p{number}", MisfitReason.NUL, f"p{number}/x")

    total = report.add(report)

    assert len(total.misfits) == MAX_MISFIT_ROWS + 1
    assert total.misfits[OTHERS, MisfitReason.NUL].count == 100
    assert total.misfit_total == 2 * (MAX_MISFIT_ROWS + 50)
    assert (total.written, total.present, total.changed) == (6, 2, 6)
    assert read_report(total.to_json()) == total
