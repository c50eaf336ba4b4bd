"""Wires the pacing of hints and the shedding of calls, each of which measures for the other."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from syncbeat_server.app.process import Process
from syncbeat_server.sync.hints.load_meter import LoadFigures, LoadLimits
from syncbeat_server.sync.hints.load_pacer import LoadPacer

if TYPE_CHECKING:
    from syncbeat_server.rpc.pipeline.load_shedding import Admission

_MAX_OPENING_STREAMS = 20_000
"""Streams of a process that are being opened at once, each of some 50 KiB. A reconnect storm is waited for, since
streams that are sent away come back as another; it fills no room of unary calls."""


def wire_load_pacing(process: Process) -> tuple[LoadPacer, Admission]:
    """Create the pacer of this process's hints and the admission of its calls, which share the counts of calls."""
    # With gRPC, which only processes with RPCs load.
    from syncbeat_server.rpc.pipeline.load_shedding import Admission, CallCounts

    settings, hub, database = process.settings, process.hub, process.database
    counts, streams = CallCounts(), CallCounts()

    def figures() -> LoadFigures:
        started, shed = counts.started + streams.started, counts.shed + streams.shed
        return LoadFigures(started, shed, hub.opened, counts.in_flight, database.waiting)

    window_s = process.rules.sync.load_window_s
    limits = LoadLimits(settings.capacity_rps, settings.max_in_flight, settings.database_pool_size, window_s)
    pacer = LoadPacer(process.bus, process.clock, limits, figures, process.metrics.sync)

    def admission(max_in_flight: int, counts: CallCounts) -> Admission:
        on_shed = process.metrics.rpc.call_shed
        return Admission(max_in_flight, lambda: pacer.overload, pacer.retry_delay_s, random.random, on_shed, counts)

    calls = admission(settings.max_in_flight, counts)
    calls.streams = admission(_MAX_OPENING_STREAMS, streams)
    return pacer, calls
