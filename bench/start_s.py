"""Time from the start of the process to its ready line, on new embedded stores; and the memory of the idle server."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

from bench.figure import Better, Figure, Options, report_progress
from bench.processes import rss_kb, running_process

_IDLE_S = 1.0


def measure(options: Options) -> Figure:
    """Measure seconds. There is no baseline."""
    command = [str(Path(sys.executable).with_name("syncbeat-server")), "serve"]
    environment = {
        "SYNCBEAT_LISTEN": "127.0.0.1:0",
        "SYNCBEAT_JWT_SECRETS": "k1=0123456789abcdef0123456789abcdef",
    }
    took, memory = [], []
    for number in range(1, options.rounds + 1):
        with running_process(command, "syncbeat-server: serving on", environment) as server:
            took.append(server.ready_s)
            time.sleep(_IDLE_S)
            memory.append(rss_kb(server.pid) / 1024)
        report_progress(f"start_s: round {number}/{options.rounds}: {took[-1]:.2f} s, {memory[-1]:.0f} MiB idle")
    return Figure(
        name="start_s",
        unit="s",
        better=Better.LESS,
        value=median(took),
        baseline=None,
        runs=[[one] for one in took],
        notes={"idle_rss_mib": round(median(memory), 1), "stores": "embedded, a new cluster each time"},
    )
