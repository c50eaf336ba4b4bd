"""Metrics of several processes are one answer, whoever is asked, and lose nothing when one ends."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from syncbeat_server.ops.group_metrics.process_exchange import ProcessExchange
from syncbeat_server.ops.group_metrics.snapshot import MOST_OCTETS, Collected, decode, encode, merge
from syncbeat_server.ops.metrics.rpc import RpcMetrics
from syncbeat_server.ops.tracing.spans import SpanKind, active
from tests.support.otlp import idle_tracer

pytestmark = pytest.mark.unit


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with TemporaryDirectory() as name:
        yield Path(name)


def counted(calls: float, streams: float = 0.0, ready: float = 1.0) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls", "x", ("of",), registry=registry).labels("a").inc(calls)
    Gauge("syncbeat_open_streams", "x", registry=registry).set(streams)
    Gauge("syncbeat_ready", "x", registry=registry).set(ready)
    Histogram("seconds", "x", buckets=(1.0,), registry=registry).observe(calls)
    return registry


class Grown(Collector):
    """Metrics that a process has only later."""

    def __init__(self, count: float) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily("grown", "x", self._count)


def documents(folder: Path) -> list[Path]:
    return list(folder.glob("*.json"))


def values(source: Collected) -> dict[str, float]:
    return {
        "".join((sample.name, *(f",{key}={value}" for key, value in sample.labels.items()))): sample.value
        for metric in source.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_counters_add_up_and_gauges_go_by_their_meaning() -> None:
    sources = [decode(encode(counted(2, streams=3))), decode(encode(counted(0.5, streams=4, ready=0.0)))]
    assert values(merge(sources)) == {
        "calls_total,of=a": 2.5,
        "syncbeat_open_streams": 7.0,
        "syncbeat_ready": 0.0,
        "seconds_bucket,le=1.0": 1.0,
        "seconds_bucket,le=+Inf": 2.0,
        "seconds_count": 2.0,
        "seconds_sum": 2.5,
    }


def test_exemplars_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    tracer = idle_tracer(monkeypatch)
    with active(tracer.start("x", SpanKind.SERVER, {})) as span:
        RpcMetrics(registry).calls("s", "m").count_traced("OK", 0.003)
    samples = [sample for metric in merge([decode(encode(registry))]).collect() for sample in metric.samples]
    (exemplar,) = [sample.exemplar for sample in samples if sample.exemplar is not None]
    assert exemplar.labels == {"trace_id": f"{span.context.trace_id:032x}"}


@pytest.mark.parametrize("document", [b"", b"{}x", b"[1]", b'[["a","b"]]', b"null"])
def test_document_that_is_none_is_refused(document: bytes) -> None:
    with pytest.raises(ValueError, match="no document"):
        decode(document)


async def test_any_process_answers_for_all(folder: Path) -> None:
    exchanges = [ProcessExchange(folder, counted(number)) for number in (1, 2, 4)]
    async with AsyncExitStack() as stack:
        for one in exchanges:
            await stack.enter_async_context(one.offered())
        for one in exchanges:
            merged = values(await one.merged())
            assert merged["calls_total,of=a"] == 7
            assert merged["syncbeat_metrics_processes,state=answered"] == 3


async def test_folder_with_a_long_path_is_used(folder: Path) -> None:
    deep = folder / ("x" * 120) / ("y" * 120)
    deep.mkdir(parents=True)
    own, other = ProcessExchange(deep, counted(1)), ProcessExchange(deep, counted(2))
    async with own.offered(), other.offered():
        assert values(await own.merged())["syncbeat_metrics_processes,state=answered"] == 2
        assert values(await other.merged())["calls_total,of=a"] == 3
    assert not list(deep.glob("*.sock"))


async def test_gauge_that_is_no_number_costs_no_process_its_metrics(folder: Path) -> None:
    broken = counted(1)
    for name, value in (("nan", math.nan), ("up", math.inf), ("down", -math.inf)):
        Gauge(name, "x", registry=broken).set(value)
    own, other = ProcessExchange(folder, counted(2, ready=math.nan)), ProcessExchange(folder, broken)
    async with own.offered(), other.offered():
        merged = values(await own.merged())
    assert (merged["calls_total,of=a"], merged["syncbeat_ready"]) == (3, 1), "of those that know"
    assert merged["syncbeat_metrics_processes,state=answered"] == 2
    assert math.isnan(merged["nan"])
    assert (merged["up"], merged["down"]) == (math.inf, -math.inf)


async def test_document_that_cannot_be_read_costs_the_others_nothing(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "1-bad.json").write_bytes(b"[")
    own = ProcessExchange(folder, counted(1))
    async with own.offered():
        assert values(await own.merged())["calls_total,of=a"] == 1
    assert [record.__dict__["document"] for record in caplog.records] == ["1-bad"]


async def test_counters_of_a_process_that_ended_stay(folder: Path) -> None:
    own, other = ProcessExchange(folder, counted(1, streams=1)), ProcessExchange(folder, counted(2, streams=2))
    async with own.offered():
        async with other.offered():
            assert values(await own.merged())["syncbeat_open_streams"] == 3
        merged = values(await own.merged())
    assert merged["calls_total,of=a"] == 3
    assert merged["syncbeat_open_streams"] == 1
    assert merged["syncbeat_metrics_processes,state=ended"] == 1


async def test_process_that_hangs_is_not_waited_for(folder: Path) -> None:
    own, hangs = ProcessExchange(folder, counted(1, streams=1)), asyncio.Event()

    async def say_nothing(_reader: object, writer: asyncio.StreamWriter) -> None:
        await hangs.wait()
        writer.close()

    (folder / "1-hangs.json").write_bytes(encode(counted(2, streams=2)))
    server = await asyncio.start_unix_server(say_nothing, str(folder / "1-hangs.sock"))
    async with own.offered():
        merged = values(await own.merged())
    hangs.set()
    server.close()
    assert merged["calls_total,of=a"] == 3, "by what it said before"
    assert merged["syncbeat_open_streams"] == 3
    assert merged["syncbeat_metrics_processes,state=late"] == 1


async def test_documents_of_a_crash_loop_are_bounded(folder: Path) -> None:
    for number in range(100):
        (folder / f"{number}.json").write_bytes(encode(counted(1)))
    own = ProcessExchange(folder, counted(1))
    async with own.offered():
        assert values(await own.merged())["syncbeat_metrics_processes,state=ended"] == 64
    assert len(os.listdir(folder)) == 65


async def test_live_processes_are_no_part_of_that_bound(folder: Path) -> None:
    exchanges = [ProcessExchange(folder, counted(1)) for _ in range(70)]
    async with AsyncExitStack() as stack:
        for one in exchanges:
            await stack.enter_async_context(one.offered())
        for _ in range(2):
            merged = values(await exchanges[0].merged())
            assert merged["calls_total,of=a"] == 70
        assert len(documents(folder)) == 70


async def test_process_that_crashes_counts_by_what_it_told(folder: Path) -> None:
    registry = counted(1)
    crashes, other = ProcessExchange(folder, registry), ProcessExchange(folder, counted(2))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(other.offered())
        async with crashes.offered():
            assert values(await other.merged())["calls_total,of=a"] == 3
            registry.register(Grown(10))
            told = values(await crashes.merged())["grown_total"]
            (mark,) = [path for path in documents(folder) if b"grown" in path.read_bytes()]
            kept = mark.read_bytes()
        mark.write_bytes(kept)  # as it was when it told: a crash writes nothing more
        assert values(await other.merged())["grown_total"] == told == 10


async def test_only_regular_files_are_read(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.write_bytes(encode(counted(5)))
    os.mkfifo(folder / "1-fifo.json")
    (folder / "1-link.json").symlink_to(elsewhere)
    (folder / "1-folder.json").mkdir()
    with (folder / "1-large.json").open("wb") as file:
        file.truncate(MOST_OCTETS + 1)
    own = ProcessExchange(folder, counted(1))
    async with own.offered(), asyncio.timeout(10):
        assert values(await own.merged())["calls_total,of=a"] == 1


async def test_document_that_cannot_be_kept_leaves_nothing(folder: Path) -> None:
    own = ProcessExchange(folder, counted(1))
    async with own.offered():
        await own.merged()
        (kept,) = documents(folder)
        kept.unlink()
        kept.mkdir()
        assert values(await own.merged())["calls_total,of=a"] == 1
        assert {name.rpartition(".")[2] for name in os.listdir(folder)} == {"json", "sock"}
