"""Compares `hint_vs_echo` of two revisions whose servers run at the same time and are loaded in turns.

One after the other, the two processes of a round are half a minute apart, and their log ratio spreads by 11 % on a busy
machine; in turns of half a second the machine's speed is the same for both (ADR 142).
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from statistics import median

from bench import h2load
from bench.figure import Better, Round
from bench.measurement import Measurement, MeasurementFailed
from bench.processes import RunningProcess, clean_environment
from bench.revision import Side
from bench.stage import GET_HINT, measure_load

FIGURE = "hint_vs_echo"
"""The figure that is measured so."""

_SLICES = 10
_SLICE_S = 0.5
_WARM_UP_S = 2.0
_END_S = 60.0

# Run by each revision's own interpreter with its own bench, whose names are those of all revisions since ADR 73.
_SERVE = """
import sys
from bench import hint_vs_echo, stage
with stage.migrated_stores() as stores:
    stage.add_users(stores, ["alice"])
    token, request = stage.user_token("alice"), hint_vs_echo._request()
    with stage.our_server(stores) as ours:
        answer = stage.call(ours.address, stage.GET_HINT, request, token)
        print(ours.pid, stores.pids[0], ours.address, token, request.hex(), len(answer), flush=True)
        sys.stdin.readline()
"""


@dataclass(frozen=True)
class _Server:
    """A server of one revision, with the call that it is loaded with."""

    process: RunningProcess
    database: int
    token: str
    request: bytes
    answer_bytes: int

    def load(self, seconds: float) -> Round:
        """Load the server for so long over 16 connections x 4 streams."""
        headers = [
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("authorization", f"Bearer {self.token}"),
        ]
        url = f"http://{self.process.address}{GET_HINT}"
        return measure_load(
            self.process, self.database, lambda: h2load.run(url, self.request, headers, seconds, self.answer_bytes)
        )


def measure_round(here: Side, there: Side, order: random.Random) -> tuple[Measurement, Measurement]:
    """Measure one process of each revision, and return this revision's and the other's measurement.

    The ratio of the two values is the median of the ratios of slices that were next to each other.

    Raises:
        MeasurementFailed: a server does not start, or a call failed.
    """
    with ExitStack() as stack:
        started: dict[int, _Server] = {}
        for side in order.sample((0, 1), 2):
            started[side] = stack.enter_context(_serving((here, there)[side]))
        try:
            for server in started.values():
                server.load(_WARM_UP_S)
            slices = [_measure_slice(started, order) for _ in range(_SLICES)]
        except (RuntimeError, subprocess.SubprocessError) as error:
            raise MeasurementFailed(f"{FIGURE} side by side: {error}") from None
    value = median(before.value for _, before in slices)
    cpu = median(_cpu_us(before) for _, before in slices)
    ratio = median(now.value / before.value for now, before in slices)
    cpu_ratio = median(_cpu_us(now) / _cpu_us(before) for now, before in slices)
    return Measurement(value * ratio, cpu * cpu_ratio, Better.MORE), Measurement(value, cpu, Better.MORE)


def _measure_slice(started: dict[int, _Server], order: random.Random) -> tuple[Round, Round]:
    got = {side: started[side].load(_SLICE_S) for side in order.sample((0, 1), 2)}
    return got[0], got[1]


def _cpu_us(measured: Round) -> float:
    return (measured.server_cpu_us or 0.0) + (measured.database_cpu_us or 0.0)


@contextmanager
def _serving(side: Side) -> Iterator[_Server]:
    process = subprocess.Popen(
        [str(side.python), "-c", _SERVE],
        cwd=side.root,
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 6:
            raise MeasurementFailed(f"the server of {side.root} did not start")
        pid, database, address, token, request, answer_bytes = words
        running = RunningProcess(int(pid), address, 0.0)
        yield _Server(running, int(database), token, bytes.fromhex(request), int(answer_bytes))
    finally:
        with suppress(BrokenPipeError, ValueError, subprocess.TimeoutExpired):
            process.communicate("\n", timeout=_END_S)
        if process.poll() is None:
            process.kill()
            process.wait()
