"""The simulator's own clockwork, held against what is known without it; and that the policy alone decides."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest

from syncbeat_devtools.simulate.engine.jobs import Sample, run_job, split_jobs
from syncbeat_devtools.simulate.engine.poll_day import TrueRates, play_poll_day
from syncbeat_devtools.simulate.engine.tally import Tally, half_width, sum_tallies
from syncbeat_devtools.simulate.fleet.devices import CONSTANT, DAY, DEFAULT, FLEETS, HOUR, Device, Segment, make_device
from syncbeat_devtools.simulate.policies.bounds import poll_bound
from syncbeat_devtools.simulate.policies.schedules import make_schedule
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_server.sync.model import Activity, ScopeState
from syncbeat_server.sync.policy import belief, comparison_policies, hint, interval, scope_signal
from syncbeat_server.sync.policy.hint import Situation
from syncbeat_server.sync.policy.hint_inputs import Tuning
from syncbeat_server.sync.policy.interval import Bounds, Price

pytestmark = pytest.mark.unit

DEVICES = [make_device(DEFAULT, 5, index, 24, history_days=1) for index in range(24)]
POLLING = [row for row in PolicyRow if row not in (PolicyRow.HYBRID, PolicyRow.HYBRID_CEILING)]


class Noted(Tally):
    """A tally that also keeps the moments of one device's polls."""

    __slots__ = ("moments",)

    def request(self, at: float) -> None:
        """Note it."""
        self.moments = [*getattr(self, "moments", []), at]


def a_day(row: PolicyRow, devices: list[Device], settings: Settings) -> Tally:
    """All of them by one policy."""
    tally = Tally()
    for device in devices:
        chance = random.Random(device.index)
        phase = chance.random()
        play_poll_day(device, make_schedule(row, settings, DEFAULT, device, 5e-4, chance), tally, phase)
    return tally


def test_fixed_polling_staleness_matches_theory() -> None:
    lively = replace(CONSTANT, hot_per_s=30 / HOUR, cold_per_s=30 / HOUR)
    devices = [make_device(lively, 1, index, 40) for index in range(40)]
    tally = a_day(PolicyRow.FIXED, devices, Settings(1.0))
    assert tally.requests == pytest.approx(40 * DAY / 30, abs=40)
    assert tally.empirical_mean_s == pytest.approx(15.0, rel=0.01)
    assert tally.mean_s == pytest.approx(15.0, rel=0.001)
    assert tally.quantiles_s(0.5, 0.95) == pytest.approx((15.0, 28.5), rel=0.01)
    assert poll_bound(devices).least_requests(15.0) == pytest.approx(40 * DAY / 30)


def test_clairvoyant_policy_approaches_the_bound() -> None:
    oracle = a_day(PolicyRow.ORACLE, DEVICES[:12], Settings(1.31))
    bound = poll_bound(DEVICES[:12])
    assert 0.94 < bound.least_requests(oracle.mean_s) / oracle.requests < 1.005
    for row in (PolicyRow.CEILING, PolicyRow.PULL, PolicyRow.EWMA):
        tally = a_day(row, DEVICES[:12], Settings(1.31))
        assert 0.6 < bound.least_requests(tally.mean_s) / tally.requests < 0.9


def test_simulated_and_believed_means_agree() -> None:
    tally = a_day(PolicyRow.PULL, DEVICES, Settings(1.2))
    assert tally.empirical_mean_s == pytest.approx(tally.mean_s, rel=0.1)
    assert len(tally.delays) == pytest.approx(tally.expected, rel=0.1)
    assert tally.predicted_changes == pytest.approx(tally.expected, rel=0.15)


def test_planted_policy_bug_moves_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def product() -> float:
        tally = a_day(PolicyRow.PULL, DEVICES[:8], Settings(1.2, Bounds(1.0, 600.0)))
        return tally.mean_s * tally.requests

    right = product()
    with monkeypatch.context() as bugs:
        bugs.setattr(scope_signal, "after_change", belief.after_silence)  # a change tells nothing
        assert product() > 1.2 * right
    with monkeypatch.context() as bugs:
        plain = interval.break_even_wait
        bugs.setattr(interval, "break_even_wait", lambda *known: plain(*known) ** 2 / 20.0)  # not the square root
        assert product() > 1.1 * right
    assert product() == right


@pytest.mark.parametrize("row", POLLING)
def test_simulated_waits_come_from_the_policy(row: PolicyRow, monkeypatch: pytest.MonkeyPatch) -> None:
    answered: set[float] = set()
    for module, name in (
        (interval, "poll_interval"),
        (comparison_policies, "fixed_interval"),
        (comparison_policies, "tier_interval"),
        (comparison_policies, "multiplicative_backoff"),
        (comparison_policies, "square_root_interval"),
    ):
        plain = getattr(module, name)

        def noting(*known: object, plain=plain, **named: object) -> float:  # type: ignore[no-untyped-def]  # any policy function
            wait = float(plain(*known, **named))
            answered.add(wait)
            return wait

        monkeypatch.setattr(module, name, noting)
    device, chance = DEVICES[3], random.Random(1)
    tally = Noted()
    play_poll_day(device, make_schedule(row, Settings(1.2), DEFAULT, device, 5e-4, chance), tally, 0.5)
    moments = tally.moments
    assert len(moments) == tally.requests > 500
    answers = sorted(answered)
    for before, after in itertools.pairwise(moments):
        gap = after - before
        assert any(math.isclose(gap, wait, rel_tol=1e-6) for wait in answers)


def test_simulated_wait_equals_the_server_hint() -> None:
    device = DEVICES[3]
    schedule = make_schedule(PolicyRow.PULL, Settings(1.0), DEFAULT, device, 5e-4, random.Random(1))
    known = scope_signal.initial_signal(device.born)._replace(presence_at=device.born)
    tuning = Tuning(price=Price(3.2))
    for at in device.history:
        schedule.on_change(at)
        known = scope_signal.signal_after_change(known, tuning.prior, at)
        hinted = hint.decide_interval(Situation([ScopeState("a", "e", 1, known)], Activity()), tuning, at + 40.0)
        assert schedule.interval(at + 40.0, news=True) == pytest.approx(hinted.interval_s)


def test_simulated_day_ends_at_midnight_and_misses_nothing() -> None:
    device = Device(0, (10.0, DAY - 1.0), (Segment(0.0, DAY, 2 / DAY, hot=False),), 0.0, 2 / DAY)
    tally = Noted()
    play_poll_day(
        device, make_schedule(PolicyRow.FIXED, Settings(1.0), DEFAULT, device, 1.0, random.Random(1)), tally, 0.5
    )
    assert max(tally.moments) < DAY
    assert tally.requests == 2880
    assert sorted(tally.delays) == pytest.approx([5.0, 16.0])  # polls at 15, 45, ... and 15 s into the next day


def test_true_rates_integrate_over_their_segments() -> None:
    rates = TrueRates((Segment(0.0, 100.0, 0.1, hot=False), Segment(100.0, 200.0, 0.3, hot=True)))
    assert rates.stale_s(0.0, 50.0) == pytest.approx(0.1 * 50**2 / 2)
    assert rates.stale_s(50.0, 150.0) == pytest.approx(0.1 * (100**2 - 50**2) / 2 + 0.3 * 50**2 / 2)
    assert rates.per_s == 0.3
    assert rates.stale_s(150.0, 250.0) == pytest.approx(0.3 * (100**2 - 50**2) / 2)  # nothing comes after the day


@pytest.mark.parametrize("name", sorted(FLEETS))
def test_fleet_generation_is_deterministic(name: str) -> None:
    spec = FLEETS[name]
    devices = [make_device(spec, 3, index, 100) for index in range(100)]
    assert devices[7] == make_device(spec, 3, 7, 100) != make_device(spec, 4, 7, 100)
    for device in devices:
        assert device.segments[0].start == 0.0
        assert device.segments[-1].end == DAY
        assert all(a.end == b.start for a, b in itertools.pairwise(device.segments))
        assert list(device.changes) == sorted(device.changes)
        assert all(0.0 <= at < DAY for at in device.changes)
    changes = sum(len(device.changes) for device in devices)
    assert changes == pytest.approx(poll_bound(devices).changes(), rel=0.1)
    if name in ("default", "constant"):
        assert changes * 200 == pytest.approx(860_000, rel=0.1)


def test_history_of_longer_length_leaves_out_nothing() -> None:
    known = make_device(DEFAULT, 3, 7, 100, history_days=3)
    assert known.born == -3 * DAY
    assert known.history
    assert all(-3 * DAY <= at < 0.0 for at in known.history)
    assert not make_device(DEFAULT, 3, 7, 100).history


def test_seed_gives_the_same_figures_however_split() -> None:
    sample = Sample(DEFAULT, 11, 60, history_days=0)
    settings = Settings(1.5)
    jobs = split_jobs(PolicyRow.EWMA, sample, settings, 60)
    assert [(job.first, job.last) for job in jobs] == [(0, 50), (50, 60)]
    pieces = sum_tallies(run_job(job) for job in jobs)
    whole = run_job(replace(jobs[0], last=60))
    assert pieces.requests == whole.requests
    assert list(pieces.delays) == list(whole.delays)
    assert run_job(replace(jobs[0], sample=replace(sample, seed=12))).delays != whole.delays


def test_half_widths_are_student_t() -> None:
    assert half_width([1.0]) is None
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.30 / math.sqrt(3))
