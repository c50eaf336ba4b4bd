"""Writes the metrics of a process as a document, and adds up those of several.

Counters and histograms are summed. A gauge is summed too where the processes share something out, such as connections;
where each tells of the same thing, by the rule here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite, isnan, nan
from statistics import fmean
from typing import Any, Protocol

import orjson
from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar, Sample

MOST_OCTETS = 8 * 2**20
"""The size of a document, at most; a larger one is not read."""

_CUMULATIVE = frozenset({"counter", "histogram"})
_Combine = Callable[[Sequence[float]], float]
_GAUGES: dict[str, _Combine] = {
    # Each worker counts the whole queue, and each process sees the same stores.
    "process_start_time_seconds": max,  # of the last restart
    "syncbeat_clock_skew_seconds": max,
    "syncbeat_deliveries_oldest_due_seconds": max,
    "syncbeat_deliveries_unaccounted": max,
    "syncbeat_deliveries_waiting": max,
    "syncbeat_events_oldest_failed_seconds": max,
    "syncbeat_pool_acquire_p95_seconds": max,
    "syncbeat_push_breaker_open": max,
    "syncbeat_slo_burn_rate": max,
    "syncbeat_stretch": max,
    # 1 only while it is so in every process.
    "syncbeat_check_passed": min,
    "syncbeat_limits_shared": min,
    "syncbeat_ready": min,
    "syncbeat_redis_up": min,
    "syncbeat_slo_error_budget_remaining_ratio": min,
    "syncbeat_sync_optimality_ratio": fmean,
}


class Collected(Protocol):
    """Returns metrics, as the encoders of the library ask for them."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics now."""


class Merged:
    """Holds the metrics of several processes as one source."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return the metrics."""
        yield from self._metrics


def encode(source: Collected) -> bytes:
    """Return the metrics of a process as a document."""
    return orjson.dumps(
        [
            (one.name, one.documentation, one.type, [_sample_fields(sample) for sample in one.samples])
            for one in source.collect()
        ]
    )


def decode(document: bytes, *, ended: bool = False) -> list[Metric]:
    """Return the metrics of a document; of a process that has ended only what adds up over time.

    Raises:
        ValueError: it is none.
    """
    try:
        return [_metric(fields) for fields in orjson.loads(document) if not ended or fields[2] in _CUMULATIVE]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError("no document of metrics") from error


def merge(processes: Sequence[Iterable[Metric]]) -> Merged:
    """Return the metrics of all processes together, series by series."""
    first: dict[str, Metric] = {}
    values: dict[str, dict[tuple[Any, ...], list[Sample]]] = {}
    for metrics in processes:
        for metric in metrics:
            first.setdefault(metric.name, metric)
            series = values.setdefault(metric.name, {})
            for sample in metric.samples:
                series.setdefault((sample.name, *sorted(sample.labels.items())), []).append(sample)
    return Merged([_together(first[name], series.values()) for name, series in values.items()])


def _together(metric: Metric, series: Iterable[Sequence[Sample]]) -> Metric:
    combine: _Combine = _GAUGES.get(metric.name, sum) if metric.type == "gauge" else sum
    merged = Metric(metric.name, metric.documentation, metric.type)
    for samples in series:
        name = samples[0].name
        # What a process does not know hides from nobody what others do.
        known = [one.value for one in samples if not isnan(one.value)] or [nan]
        value = min(known) if name.endswith("_created") else combine(known)
        exemplar = next((one.exemplar for one in samples if one.exemplar is not None), None)
        merged.samples.append(Sample(name, samples[0].labels, value, None, exemplar))
    return merged


def _sample_fields(sample: Sample) -> tuple[object, ...]:
    exemplar = None if sample.exemplar is None else (sample.exemplar.labels, sample.exemplar.value)
    # JSON has no other numbers: these are texts, which `float` reads.
    value = sample.value if isfinite(sample.value) else str(sample.value)
    return sample.name, sample.labels, value, exemplar


def _metric(fields: Sequence[Any]) -> Metric:
    name, documentation, kind, samples = fields
    metric = Metric(name, documentation, kind)
    for series, labels, value, exemplar in samples:
        example = None if exemplar is None else Exemplar(exemplar[0], exemplar[1])
        metric.samples.append(Sample(series, labels, float(value), None, example))
    return metric
