"""Runs commands of `syncbeat-server` in processes of their own, with no settings but those of the test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

PROGRAM = (sys.executable, "-m", "syncbeat_server.cli")


def command_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with these settings (`SYNCBEAT_...`) instead of its own."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("SYNCBEAT_")}
    return {**own, **settings}


def run_command(
    *arguments: str, settings: Mapping[str, str], folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within two minutes; `folder` is where, this process's own without."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=command_environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )
