"""Runs `syncbeat-server soak` as a process of its own against a stage's server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from syncbeat_devtools.demo.stage import Stage

LOOSE = (
    *("--objective", "hint_p95_s=5", "--objective", "p95_s=10", "--objective", "staleness_s=60"),
    *("--objective", "availability=0.98", "--objective", "errors=0.02"),
    "--ignore-server",
)
"""Thresholds for a machine that is busy with other tests: what they find is broken, not slow."""


async def start_soak(
    stage: Stage, out: Path, *arguments: str, target: str = "", prefix: tuple[str, ...] = ()
) -> asyncio.subprocess.Process:
    """Start a soak whose report goes to a folder, of the stage's first server unless another target is named."""
    token = stage.folder / "soak-token"
    token.write_text(f"{stage.identity.service_token}\n")
    at = target or stage.servers[0].address
    return await asyncio.create_subprocess_exec(
        *prefix,
        *(sys.executable, "-m", "syncbeat_server.cli", "soak", "--target", at, "--token-file", str(token)),
        *("--out", str(out), *arguments),
        env={name: text for name, text in os.environ.items() if not name.startswith("SYNCBEAT_")},
        cwd=stage.folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish_soak(child: asyncio.subprocess.Process, out: Path) -> tuple[int, dict[str, Any], str]:
    """Wait for the end of a soak. Returns its exit code, its report and what it printed."""
    printed, told = await child.communicate()
    text = printed.decode() + told.decode()
    report = out / "report.json"
    assert report.exists(), text
    return child.returncode or 0, json.loads(report.read_text()), text


def saved_elapsed_s(out: Path) -> float:
    """Return how far a run had come when it last wrote its state, in seconds; 0 before it did."""
    state = out / "state.json"
    return float(json.loads(state.read_text())["elapsed_s"]) if state.exists() else 0.0
