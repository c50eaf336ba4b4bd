"""Work for several processes: a policy, some devices, one multiplier; the answer is a tally."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path

from syncbeat_devtools.simulate.engine.hybrid_day import HybridDay
from syncbeat_devtools.simulate.engine.poll_day import poll_through
from syncbeat_devtools.simulate.engine.process_pool import ending_executor
from syncbeat_devtools.simulate.engine.tally import Tally, summed
from syncbeat_devtools.simulate.fleet.devices import DAY, Device, FleetSpec, make_device
from syncbeat_devtools.simulate.fleet.push_channel import Handset, handset
from syncbeat_devtools.simulate.fleet.traces import read_trace
from syncbeat_devtools.simulate.policies.bounds import bound_of
from syncbeat_devtools.simulate.policies.ceilings import known_prior
from syncbeat_devtools.simulate.policies.schedules import schedule_for
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings

CHUNK = 50
"""Devices of one job: few enough that the processes end together."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Devices of a fleet: how many, by which seed, and how long they had been known. Or those of a log."""

    spec: FleetSpec
    seed: int
    size: int
    history_days: int = 3
    trace: Path | None = None

    def devices(self, first: int = 0, last: int | None = None) -> tuple[Device, ...]:
        """These of its devices."""
        if self.trace is not None:
            return _replayed(self.trace)[first:last]
        return _made(self, first, self.size if last is None else last)


@lru_cache(maxsize=64)
def _made(sample: Sample, first: int, last: int) -> tuple[Device, ...]:
    return tuple(
        make_device(sample.spec, sample.seed, index, sample.size, sample.history_days) for index in range(first, last)
    )


@lru_cache(maxsize=1)
def _replayed(trace: Path) -> tuple[Device, ...]:
    return read_trace(trace)


@lru_cache(maxsize=64)
def mean_rate(sample: Sample) -> float:
    """Changes a second of the mean feed: what a two-window estimate starts from."""
    devices = sample.devices()
    changes = bound_of(devices).changes() or sum(len(device.changes) for device in devices)
    return changes / len(devices) / DAY


@dataclass(frozen=True, slots=True)
class Job:
    """One policy over some devices of a sample, which have ids from `first` to below `last`."""

    row: PolicyRow
    sample: Sample
    settings: Settings
    first: int
    last: int
    fleet_rate: float


_WOKEN_ROWS = {PolicyRow.HYBRID, PolicyRow.HYBRID_CEILING}


def handset_of(job: Job, index: int) -> Handset:
    """The device itself, whatever is known of it."""
    return handset(job.settings.waking, job.sample.seed, index, job.sample.size)


def run_job(job: Job) -> Tally:
    """A day of these devices."""
    tally, sample = Tally(), job.sample
    for device in sample.devices(job.first, job.last):
        # The same chance for every policy: rows differ by what the policies did.
        chance = random.Random(f"{sample.seed}:{device.index}")
        if job.row in _WOKEN_ROWS:
            settings = job.settings
            if job.row is PolicyRow.HYBRID_CEILING:
                # Told all that the server has to learn; and no push is lost.
                known = known_prior(device, sample.spec, DAY / 2)
                settings = replace(settings, prior=known, waking=replace(settings.waking, loss=0.0, dark=0.0))
            HybridDay(device, handset_of(job, device.index), settings, tally, chance).run()
            continue
        phase = chance.random()
        schedule = schedule_for(job.row, job.settings, sample.spec, device, job.fleet_rate, chance)
        poll_through(device, schedule, tally, phase)
    return tally


class Crew:
    """Processes that run jobs, and a line on the terminal that says how far they are."""

    def __init__(self, executor: Executor, show: Callable[[float, str], None]) -> None:
        self.executor, self._show = executor, show

    def run(self, jobs: Sequence[Job], what: str) -> dict[int, Tally]:
        """The tally of each seed."""
        under_way = {self.executor.submit(run_job, job): job for job in jobs}
        found: dict[int, Tally] = {}
        parts: dict[int, list[tuple[int, Tally]]] = {}
        for count, future in enumerate(as_completed(under_way), start=1):
            job = under_way[future]
            parts.setdefault(job.sample.seed, []).append((job.first, future.result()))
            self._show(count / len(jobs), what)
        for seed in sorted(parts):
            # Added in the order of devices, whatever order they came in: sums of floats then repeat to the last bit.
            found[seed] = summed(tally for _, tally in sorted(parts[seed], key=itemgetter(0)))
        return found


@contextmanager
def crew(workers: int, show: Callable[[float, str], None]) -> Iterator[Crew]:
    """So many processes, until the end of the block."""
    with ending_executor(workers) as executor:
        yield Crew(executor, show)


def jobs_of(row: PolicyRow, sample: Sample, settings: Settings, last: int) -> list[Job]:
    """The devices of a sample below `last`, in pieces."""
    rate = mean_rate(sample)
    return [Job(row, sample, settings, first, min(first + CHUNK, last), rate) for first in range(0, last, CHUNK)]
