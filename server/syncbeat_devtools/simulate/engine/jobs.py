"""Jobs for parallel processes: one policy over some devices at one multiplier, with a tally as the result."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import TypeVar

from syncbeat_devtools.simulate.engine.hybrid_day import HybridDay
from syncbeat_devtools.simulate.engine.poll_day import play_poll_day
from syncbeat_devtools.simulate.engine.process_pool import process_pool
from syncbeat_devtools.simulate.engine.tally import Tally, sum_tallies
from syncbeat_devtools.simulate.fleet.devices import DAY, Device, FleetSpec, make_device
from syncbeat_devtools.simulate.fleet.log_days import DayKey, log_day
from syncbeat_devtools.simulate.fleet.push_channel import Handset, handset
from syncbeat_devtools.simulate.policies.bounds import poll_bound
from syncbeat_devtools.simulate.policies.ceilings import exact_prior
from syncbeat_devtools.simulate.policies.schedules import make_schedule
from syncbeat_devtools.simulate.policies.settings import PolicyRow, Settings
from syncbeat_server.sync.policy.rhythm import NO_RHYTHM

_Given = TypeVar("_Given")
_Found = TypeVar("_Found")

CHUNK = 50
"""Devices per job: few enough that the processes finish together."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a fleet's devices, with its seed and the days of history before; or the devices of a log."""

    spec: FleetSpec
    seed: int
    size: int
    history_days: int = 3
    log: DayKey | None = None

    def devices(self, first: int = 0, last: int | None = None) -> tuple[Device, ...]:
        """Return its devices with indexes from `first` to below `last`."""
        if self.log is not None:
            return log_day(self.log).devices[first:last]
        return _generate_devices(self, first, self.size if last is None else last)


@lru_cache(maxsize=64)
def _generate_devices(sample: Sample, first: int, last: int) -> tuple[Device, ...]:
    return tuple(
        make_device(sample.spec, sample.seed, index, sample.size, sample.history_days) for index in range(first, last)
    )


@lru_cache(maxsize=64)
def mean_rate(sample: Sample) -> float:
    """Return the mean feed's changes per second, from which two-window estimates start."""
    devices = sample.devices()
    changes = poll_bound(devices).changes() or sum(len(device.changes) for device in devices)
    return changes / len(devices) / DAY


@dataclass(frozen=True, slots=True)
class Job:
    """One policy over the devices of a sample with indexes from `first` to below `last`."""

    row: PolicyRow
    sample: Sample
    settings: Settings
    first: int
    last: int
    fleet_rate: float


_PUSHED_ROWS = {PolicyRow.HYBRID, PolicyRow.HYBRID_CEILING}


def handset_of(job: Job, index: int) -> Handset:
    """Return the device's true properties, of which the server knows nothing."""
    return handset(job.settings.conditions, job.sample.seed, index, job.sample.size)


def run_job(job: Job) -> Tally:
    """Play a day of the job's devices."""
    tally, sample = Tally(), job.sample
    for device in sample.devices(job.first, job.last):
        # The same random numbers for every policy, so that rows differ only by the policies' decisions.
        chance = random.Random(f"{sample.seed}:{device.index}")
        if job.row in _PUSHED_ROWS:
            settings = job.settings
            if job.row is PolicyRow.HYBRID_CEILING:
                # With perfect knowledge of all that the server has to learn, and without lost pushes.
                known = exact_prior(device, sample.spec, DAY / 2)
                certain = replace(settings.conditions, loss=0.0, dark=0.0)
                settings = replace(settings, prior=known, rhythm=NO_RHYTHM, conditions=certain)
            HybridDay(device, handset_of(job, device.index), settings, tally, chance).run()
            continue
        phase = chance.random()
        schedule = make_schedule(job.row, job.settings, sample.spec, device, job.fleet_rate, chance)
        play_poll_day(device, schedule, tally, phase)
    return tally


class JobRunner:
    """Runs jobs in parallel processes and reports progress."""

    def __init__(self, executor: Executor, show: Callable[[float, str], None]) -> None:
        self.executor, self._show = executor, show

    def run(self, jobs: Sequence[Job], what: str) -> dict[int, Tally]:
        """Run all jobs. Returns the tally of each seed."""
        found: dict[int, Tally] = {}
        parts: dict[int, list[tuple[int, Tally]]] = {}
        for job, tally in zip(jobs, self.map(run_job, jobs, what), strict=True):
            parts.setdefault(job.sample.seed, []).append((job.first, tally))
        for seed in sorted(parts):
            # Added in the order of devices, not of completion, so that sums of floats are reproducible to the last bit.
            found[seed] = sum_tallies(tally for _, tally in sorted(parts[seed], key=itemgetter(0)))
        return found

    def map(self, function: Callable[[_Given], _Found], given: Sequence[_Given], what: str) -> list[_Found]:
        """Return the function's results, in the order of what it was given."""
        futures = [self.executor.submit(function, one) for one in given]
        for count, _ in enumerate(as_completed(futures), start=1):
            self._show(count / len(futures), what)
        return [future.result() for future in futures]


@contextmanager
def job_runner(workers: int, show: Callable[[float, str], None]) -> Iterator[JobRunner]:
    """Start the worker processes for the block."""
    with process_pool(workers) as executor:
        yield JobRunner(executor, show)


def split_jobs(row: PolicyRow, sample: Sample, settings: Settings, last: int) -> list[Job]:
    """Split the devices of a sample below `last` into jobs."""
    rate = mean_rate(sample)
    return [Job(row, sample, settings, first, min(first + CHUNK, last), rate) for first in range(0, last, CHUNK)]
