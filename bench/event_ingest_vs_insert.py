"""IngestEvent of one change against bare transactions that write the same rows, both with fsync on, at 64 callers."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

from bench import event_rows, raw_load
from bench.figure import Better, Figure, Options, Round, measure_pairs
from bench.processes import RunningProcess
from bench.stage import INGEST, SERVICE_TOKEN, call, measure_load, migrated_stores, our_server
from syncbeat.v1 import core_pb2
from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_devtools.embedded import EmbeddedStores

_EVENTS_A_SECOND = 1_200  # this rate makes a round about as long as requested
_SYNCS = 50


def measure(options: Options) -> Figure:
    """Measure events per second, each committed to disk before its answer."""
    numbers = count()
    with _durable_stores() as stores, our_server(stores) as ours:
        first = next(numbers)
        answer = pb.IngestEventResponse.FromString(call(ours.address, INGEST, _request(first), SERVICE_TOKEN))
        assert answer.receipt.state == pb.EVENT_STATE_ACCEPTED
        rows = asyncio.run(event_rows.read_rows(stores.admin_url, *_names(first)))
        with event_rows.BareWriters(rows).opened(stores.app_url) as bare:
            return _measure(options, ours, stores, numbers, bare)


def _measure(
    options: Options, ours: RunningProcess, stores: EmbeddedStores, numbers: Iterator[int], bare: event_rows.BareWriters
) -> Figure:
    itself = RunningProcess(os.getpid(), "", 0.0)
    bare_database_us = []

    def events() -> Round:
        made = round(options.seconds * _EVENTS_A_SECOND)
        calls = [(SERVICE_TOKEN, _request(next(numbers))) for _ in range(made)]
        warm_up = SERVICE_TOKEN, _request(0)
        return measure_load(ours, stores.pids[0], lambda: raw_load.run(ours.address, INGEST, warm_up, calls))

    def inserts() -> Round:
        measured = measure_load(itself, stores.pids[0], lambda: bare.run(options.seconds))
        bare_database_us.append(measured.database_cpu_us or 0.0)
        return measured

    figure = measure_pairs(
        "event_ingest_vs_insert",
        "events/s",
        Better.MORE,
        options,
        events,
        inserts,
        baseline_is="bare transactions of the same rows by asyncpg, each caller on a connection of its own",
        callers=event_rows.CALLERS,
        fsync=True,
        fsync_ms=round(_sync_ms(stores), 2),
        scopes=event_rows.SCOPES,
        subjects=event_rows.SUBJECTS,
        request_bytes=len(_request(0)),
    )
    beside = {"baseline_database_cpu_us_per_request": round(statistics.median(bare_database_us), 1)}
    return replace(figure, notes={**figure.notes, **beside})


def _names(number: int) -> tuple[str, str]:
    return f"event-{number:08}", f"room-{number % event_rows.SCOPES:03}"


def _request(number: int) -> bytes:
    event_id, scope = _names(number)
    change = core_pb2.NewChange(scope=scope, key="state", merge_patch_json=f'{{"page":{number},"by":"bench"}}')
    request = pb.IngestEventRequest(
        source="bench",
        event_id=event_id,
        type="page.turned",
        subject=f"subject-{number % event_rows.SUBJECTS:04}",
        effects=pb.EventEffects(changes=[change]),
    )
    request.occurred_time.FromMilliseconds(1_790_000_000_000 + number)
    return request.SerializeToString()


@contextmanager
def _durable_stores() -> Iterator[EmbeddedStores]:
    with tempfile.TemporaryDirectory(prefix="syncbeat-bench-") as folder, migrated_stores(Path(folder)) as stores:
        yield stores


def _sync_ms(stores: EmbeddedStores) -> float:
    # What a commit waits for on this disk: it says how much of the figure is the disk's.
    times = []
    with tempfile.NamedTemporaryFile(dir=stores.folder) as file:
        for _ in range(_SYNCS):
            file.write(b"x" * 8_192)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1_000
