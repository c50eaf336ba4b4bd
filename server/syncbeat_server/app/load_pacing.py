"""Wires the pacing of hints and the shedding of calls: each measures what the other needs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from syncbeat_server.app.process import Process
from syncbeat_server.sync.hints.load_meter import LoadFigures, LoadLimits
from syncbeat_server.sync.hints.load_pacer import LoadPacer

if TYPE_CHECKING:
    from syncbeat_server.rpc.admission import Admission


def pacing(process: Process) -> tuple[LoadPacer, Admission]:
    """What moves the hints of this process to moments, and what lets its calls in."""
    from syncbeat_server.rpc.admission import Admission  # with gRPC, which only processes that serve RPCs load

    settings, hub, database = process.settings, process.hub, process.database

    def figures() -> LoadFigures:
        return LoadFigures(
            admission.started_count, admission.shed_count, hub.opened, admission.in_flight, database.waiting
        )

    limits = LoadLimits(settings.capacity_rps, settings.max_in_flight, settings.database_pool_size)
    pacer = LoadPacer(process.bus, process.clock, limits, figures, process.metrics.sync)
    admission = Admission(
        settings.max_in_flight,
        lambda: pacer.overload,
        pacer.retry_delay_s,
        random.random,
        process.metrics.rpc.call_shed,
    )
    return pacer, admission
