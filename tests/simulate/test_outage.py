"""The half hour after an outage: that the policy says how long to wait, and the way of placement alone when to come."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from syncbeat_devtools.simulate.engine import outage
from syncbeat_devtools.simulate.engine.outage import Placement, simulate_outage
from syncbeat_devtools.simulate.fleet.devices import DEFAULT
from syncbeat_server.sync.policy import interval

pytestmark = pytest.mark.unit

DEVICES = 60


def test_outage_recovery_waits_come_from_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[float] = []
    came: dict[Placement, list[float]] = {way: [] for way in Placement}
    due: dict[Placement, set[float]] = {way: set() for way in Placement}
    ask, placer = interval.poll_interval, outage.placer

    def noting(*known: object, **named: object) -> float:
        answers.append(float(ask(*known, **named)))  # type: ignore[arg-type]  # passed on as it came
        return answers[-1]

    def placement(way: Placement, chance: random.Random) -> outage.Place:
        place = placer(way, chance)

        def placed(now: float, wanted: float) -> float:
            assert wanted == answers[-1]
            came[way].append(now)
            given = place(now, wanted)
            due[way].add(now + given)
            return given

        return placed

    monkeypatch.setattr(interval, "poll_interval", noting)
    monkeypatch.setattr(outage, "placer", placement)
    with ThreadPoolExecutor(1) as executor:
        for found in simulate_outage(DEFAULT, 5, DEVICES, executor):
            assert found.lengthened == pytest.approx(1.0, abs=0.02)
    for way in Placement:
        assert came[way][:DEVICES] == [came[way][0]] * DEVICES  # all of them in the same second
        assert set(came[way][DEVICES:]) <= due[way]
        assert len(came[way]) > 10 * DEVICES


def test_load_leveling_by_booking_levels_a_step_exact_times_keep() -> None:
    with ThreadPoolExecutor(1) as executor:
        booked, jittered, exact = (way.peak_over_mean for way in simulate_outage(DEFAULT, 5, 1000, executor))
    assert booked < 1.5
    assert booked < jittered < exact
