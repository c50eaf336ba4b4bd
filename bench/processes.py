"""Measured processes: started, awaited until they report that they are ready, and stopped."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from syncbeat_server.ops import parent_death_signal

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "syncbeat_server.cli")

_READY_S = 60.0
_END_S = 30.0


@dataclass(frozen=True)
class RunningProcess:
    """A process that is ready: its id, the last word of its ready line, its start time, and the lines before."""

    pid: int
    address: str
    ready_s: float
    lines: tuple[str, ...] = ()


@contextmanager
def running_process(
    command: Sequence[str], ready: str, environment: Mapping[str, str] | None = None
) -> Iterator[RunningProcess]:
    """Run `command` for the block. It is ready once it prints a line that starts with `ready`.

    Raises:
        RuntimeError: it ended before, or is not ready within a minute; the message has its error output.
    """
    with tempfile.TemporaryDirectory(prefix="syncbeat-bench-") as folder, Path(folder, "errors").open("w+b") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=_clean(environment or {}), stdout=subprocess.PIPE, stderr=errors
        )
        try:
            said = _read_until(process, ready)
            took = time.monotonic() - started
            if said is None:
                errors.seek(0)
                raise RuntimeError(
                    f"{' '.join(command)} is not ready: {errors.read().decode(errors='replace')[-2000:]}"
                )
            yield RunningProcess(process.pid, said[-1].split()[-1], took, tuple(said[:-1]))
        finally:
            _end(process)


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    # The settings of the user who runs the bench must not reach the measured process.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    return {**kept, "PYTHONPATH": str(ROOT), **environment}


def clean_environment() -> dict[str, str]:
    """Return our environment without variables that would lead one revision's Python to another's modules."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run_to_end(command: Sequence[str], folder: Path, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
    """Run `command` to its end. If we are interrupted it is too, with its children; if we are killed, only it ends.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was stopped.
    """
    launched = [
        sys.executable,
        "-I",
        "-S",
        parent_death_signal.__file__,
        str(os.getpid()),
        str(int(signal.SIGINT)),
        "-1",
        "-1",
    ]
    process = subprocess.Popen(
        [*launched, shutil.which(command[0]) or command[0], *command[1:]],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # so that whatever it started can be ended with it
    )
    try:
        output, errors = process.communicate(timeout=timeout_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_END_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _read_until(process: subprocess.Popen[bytes], ready: str) -> list[str] | None:
    deadline = time.monotonic() + _READY_S
    assert process.stdout is not None
    received = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([process.stdout], [], [], left)[0]:
            break
        chunk = os.read(process.stdout.fileno(), 4096)
        if not chunk:
            break
        received += chunk
        lines = received.decode().split("\n")[:-1]
        for number, line in enumerate(lines):
            if line.startswith(ready):
                return lines[: number + 1]
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def cpu_s(pid: int) -> dict[int, float]:
    """Return the seconds of CPU, user and system, of a process and its children, by process id."""
    process = psutil.Process(pid)
    used = {}
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        used[one.pid] = times.user + times.system
    return used


def cpu_between(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Return the seconds used between two results of `cpu_s`."""
    return sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items())


def rss_kb(pid: int) -> float:
    """Return the resident memory of a process in KiB."""
    return float(psutil.Process(pid).memory_info().rss) / 1024
