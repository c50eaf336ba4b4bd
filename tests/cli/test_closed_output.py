"""Commands whose output goes to somebody who leaves, or to where there is no room."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

pytestmark = pytest.mark.process


def writing_to(output: IO[bytes], arguments: str, unbuffered: str) -> tuple[int, str]:
    """Return what becomes of a command whose output goes there: its exit status, and what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "syncbeat_server.cli", *arguments.split()],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


OUTPUTS = [("--help", ""), ("check-config --list", ""), ("check-config --list", "1"), ("demo --json", "")]


@pytest.mark.parametrize(("arguments", "unbuffered"), OUTPUTS)
def test_closed_pipe_ends_the_command_quietly(arguments: str, unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        assert writing_to(closed, arguments, unbuffered) == (141, "")


@pytest.mark.parametrize(("arguments", "unbuffered"), OUTPUTS)
def test_full_disk_is_reported_in_a_line(arguments: str, unbuffered: str) -> None:
    with Path("/dev/full").open("wb") as full:
        told = "syncbeat-server: cannot write: No space left on device\n"
        assert writing_to(full, arguments, unbuffered) == (1, told)
