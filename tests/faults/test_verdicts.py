"""Tests that a broken promise is found, each way to break one planted by itself."""

from __future__ import annotations

import pytest

from tests.faults.matrix import During, Promise, cells, promise_of
from tests.faults.verdicts import Effect, Ended, Sample, Seen, broken

pytestmark = pytest.mark.unit

ANSWERS = Promise(During.ANSWERS, within_s=5.0)
MAY_REFUSE = Promise(During.MAY_REFUSE, within_s=10.0)
AT_ONCE = Promise(During.ANSWERS, within_s=5.0, effect_s=15.0)


def seen(*samples: Sample, effects: tuple[Effect, ...] = (), lost: tuple[str, ...] = ()) -> Seen:
    """Return what was seen of a fault from 100 s to 110 s."""
    return Seen(100.0, 110.0, list(samples), list(effects), list(lost))


def sample(began_s: float, took_s: float, ended: Ended, *, steady: bool = False) -> Sample:
    return Sample(began_s, began_s + took_s, ended, "", steady)


def test_fault_verdict_of_kept_promises_is_empty() -> None:
    calls = [sample(99.0, 0.1, Ended.ANSWERED), sample(101.0, 9.9, Ended.REFUSED), sample(111.0, 0.1, Ended.ANSWERED)]
    effects = (Effect(99.0, 99.1), Effect(105.0, 112.0))
    assert broken(MAY_REFUSE, seen(*calls, effects=effects)) == []


@pytest.mark.parametrize(
    ("promise", "what", "told"),
    [
        (ANSWERS, seen(sample(101.0, 0.1, Ended.REFUSED)), "refused with RetryInfo at 1.0 s"),
        (ANSWERS, seen(sample(101.0, 6.0, Ended.ANSWERED)), "took 6.0 s at 1.0 s"),
        (MAY_REFUSE, seen(sample(101.0, 9.9, Ended.LATE)), "DEADLINE_EXCEEDED at 1.0 s"),
        (MAY_REFUSE, seen(sample(101.0, 0.1, Ended.FAILED)), "failed at 1.0 s"),
        (MAY_REFUSE, seen(sample(101.0, 0.1, Ended.REFUSED, steady=True)), "refused with RetryInfo at 1.0 s"),
        (MAY_REFUSE, seen(sample(126.0, 0.1, Ended.REFUSED)), "recovered after 16.1 s"),
        (MAY_REFUSE, seen(sample(120.0, 6.0, Ended.ANSWERED)), "recovered after 16.0 s"),
        (MAY_REFUSE, seen(effects=(Effect(101.0, None),)), "never seen: promised at 1.0 s"),
        (MAY_REFUSE, seen(effects=(Effect(101.0, 126.0),)), "caught up after 16.0 s"),
        (AT_ONCE, seen(effects=(Effect(90.0, 106.0),)), "seen 16.0 s after it was promised"),
        (ANSWERS, seen(lost=("gone",)), "gone"),
    ],
)
def test_fault_verdict_finds_a_broken_promise(promise: Promise, what: Seen, told: str) -> None:
    (found,) = broken(promise, what)
    assert told in found


def test_fault_matrix_has_a_promise_for_each_cell() -> None:
    promises = [promise_of(cell) for cell in cells()]
    assert len(promises) == 5 * 7 * 5
    assert all(promise.within_s <= 10.0 and promise.recovered_s <= 65.0 for promise in promises)
