"""Tests the plan of a soak: it follows from its seed alone, and resumes in the middle."""

from __future__ import annotations

from collections import Counter

import pytest

from syncbeat_devtools.soak.load.fleet import METHODS, METHODS_WITHOUT_SESSIONS
from syncbeat_devtools.soak.plan import DEFAULT_SHARES, POLL_INTERVAL_S, Operation, fleet_size, make_plan
from syncbeat_devtools.soak.request import read_duration, read_objectives, read_shares
from syncbeat_devtools.soak.verdict.objectives import objective_names
from tests.docs.pages import ROOT

pytestmark = pytest.mark.unit


def test_soak_plan_is_evenly_spaced_and_divided_by_its_shares() -> None:
    plan = make_plan(100.0, DEFAULT_SHARES, seed=3)
    assert plan.per_second == pytest.approx(30.0)  # polls, 70 in 100, come by hints
    arrivals = [plan.arrival(number) for number in range(30_000)]
    assert arrivals[-1].at_s == pytest.approx(29_999 / 30)
    shares = Counter(one.operation for one in arrivals)
    for operation in (Operation.PUBLISH, Operation.EVENT, Operation.PUSH, Operation.REFRESH, Operation.STREAM):
        assert shares[operation] / 30_000 == pytest.approx(DEFAULT_SHARES[operation] / 30.0, abs=0.01)
    assert len({one.draw for one in arrivals}) == 30_000


def test_soak_plan_repeats_by_its_seed_and_resumes_where_it_was() -> None:
    plan = make_plan(100.0, DEFAULT_SHARES, seed=3)
    again, other = make_plan(100.0, DEFAULT_SHARES, seed=3), make_plan(100.0, DEFAULT_SHARES, seed=4)
    assert [plan.arrival(number) for number in range(100)] == [again.arrival(number) for number in range(100)]
    assert [plan.arrival(number) for number in range(100)] != [other.arrival(number) for number in range(100)]
    for elapsed_s in (0.0, 0.01, 1.0, 1_000.017):
        first = plan.first_after(elapsed_s)
        assert plan.arrival(first).at_s >= elapsed_s
        assert first == 0 or plan.arrival(first - 1).at_s < elapsed_s


def test_soak_fleet_has_as_many_devices_as_poll_at_their_share() -> None:
    assert fleet_size(100.0, DEFAULT_SHARES) == round(70 * POLL_INTERVAL_S)
    assert fleet_size(0.01, DEFAULT_SHARES) == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("48h", 172_800.0), ("90m", 5_400.0), ("1.5s", 1.5), ("31d", 2_678_400.0)]
)
def test_soak_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "48", "h", "-1h", "0s", "32d", "1e3s", "1h30m", "nan"])
def test_soak_duration_refuses_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="from 1s to 31d"):
        read_duration(text)


def test_soak_shares_and_objectives_keep_what_is_not_named() -> None:
    shares = read_shares("push=0,poll=10")
    assert (shares[Operation.PUSH], shares[Operation.POLL]) == (0.0, 10.0)
    assert shares[Operation.PUBLISH] == DEFAULT_SHARES[Operation.PUBLISH]
    aims = read_objectives(["hint_p95_s=0.1"])
    assert (aims.hint_p95_s, aims.p95_s) == (0.1, 0.2)
    for wrong in ("list=1", "push=-1", "push=x", "poll=0,publish=0,event=0,push=0,refresh=0,stream=0"):
        with pytest.raises(ValueError, match="want"):
            read_shares(wrong)
    with pytest.raises(ValueError, match="want one of"):
        read_objectives(["latency=1"])


def test_soak_page_names_the_methods_that_a_run_calls_and_its_objectives() -> None:
    page = (ROOT / "docs" / "soak.md").read_text(encoding="utf-8")
    assert f"'{'|'.join(METHODS)}'" in page
    assert f"`{'|'.join(METHODS_WITHOUT_SESSIONS)}`" in page
    assert all(f"`{name}`" in page for name in objective_names())
    assert ",".join(f"{name}={share:g}" for name, share in DEFAULT_SHARES.items()) in page
