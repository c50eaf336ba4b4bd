"""Commands that pages and `make run` tell their readers to type, run in a shell, some of them while others go on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.docs.pages import ROOT
from tests.support.shell_sessions import SEARCHED

LONGEST_S = 60.0


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a reader who has these tools and this virtual environment on the PATH."""
    return {**variables, "PATH": SEARCHED}


def run_shell(text: str, variables: Mapping[str, str]) -> str:
    """Run commands in a shell, in the clone, and return what they print; they have to succeed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=ROOT,
        env=environment_of(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    return done.stdout


class Running:
    """Commands that go on, and what they have printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    def read_to_the_end(self) -> None:
        """Wait until all that was printed is read, before the pipe is closed."""
        self._reader.join(LONGEST_S)

    def wait_for(self, words: str) -> None:
        """Wait until these words have been printed."""
        ends_at = time.monotonic() + LONGEST_S
        with self._changed:
            while not any(words in line for line in self._lines):
                left_s = ends_at - time.monotonic()
                assert left_s > 0, f"no {words!r} in {self._lines}"
                self._changed.wait(left_s)


@contextmanager
def running_shell(text: str, variables: Mapping[str, str]) -> Iterator[Running]:
    """Run commands that go on until the block ends."""
    with subprocess.Popen(
        ["bash", "-c", text],
        cwd=ROOT,
        env=environment_of(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(LONGEST_S)
            running.read_to_the_end()
