"""Lays out the answer to GetStatus for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

_GAP = "  "
_STATE = "DELIVERY_STATE_"
_BREAKER = "BREAKER_STATE_"
_SERVICE = "syncbeat.v1."

Answer = Mapping[str, Any]
"""GetStatusResponse, or a part of it, as JSON has it."""


def status_table(answer: Answer) -> str:
    """Return the status as sections of text; what a store did not answer is said to be unknown."""
    build = answer.get("build", {})
    head = (
        f"{answer['process']} answers: syncbeat {_build(build)}, Python {build.get('python')}, gRPC {build.get('grpc')}"
    )
    sections = [
        clean(head),
        _processes(answer),
        _methods(answer),
        section("pool", [_pool(answer["pool"])]),
        _breakers(answer.get("breakers", [])),
        _caches(answer.get("caches", [])),
        section("limits", [_limits(answer.get("limits"))]),
        section("push queue", [_queue(answer.get("pushQueue"))]),
        section("streams", [_streams(answer.get("streams", {}))]),
        section("migrations", [_migrations(answer.get("migrations"))]),
        section("objectives over 30 days", objective_lines(answer.get("slos", []))),
    ]
    return "\n\n".join(sections)


def _processes(answer: Answer) -> str:
    processes: Sequence[Answer] = answer.get("processes", [])
    own = next((one for one in processes if _is_own(one, answer)), None)
    now = None if own is None else _moment(own["updateTime"])
    rows: list[tuple[str, ...]] = [
        ("PROCESS", "ROLE", "UP", "SEEN", "BUILD", "CALLS/S", "ERRORS", "POOL", "STREAMS", "BREAKERS OPEN")
    ]
    for one in processes:
        told = _moment(one["updateTime"])
        ago = "now" if one is own else f"{span(max(0.0, (now - told).total_seconds()))} ago" if now else "?"
        up_s = (told - _moment(one["startTime"])).total_seconds()
        rows.append(
            (clean(one["process"]), clean(one["role"]), span(up_s), ago, clean(_build(one["build"])), *_load(one))
        )
    more = int(answer.get("omittedProcessCount", 0))
    return section(f"processes ({len(processes) + more})", [*columns(rows, right={2, 3, 5, 6, 8})], more)


def _is_own(one: Answer, answer: Answer) -> bool:
    return bool(one["process"] == answer["process"] and one["startTime"] == answer["startTime"])


def _load(one: Answer) -> tuple[str, ...]:
    rpcs, pool = one.get("rpcs", []), one["pool"]
    calls, errors = (sum(int(rpc[name]) for rpc in rpcs) for name in ("calls", "errors"))
    closed = [breaker["name"] for breaker in one.get("breakers", []) if breaker["state"] != f"{_BREAKER}CLOSED"]
    return (
        f"{sum(float(rpc['rate']) for rpc in rpcs):.1f}",
        _share(errors, calls),
        f"{pool['inUse']}/{pool['maxSize']}",
        str(one.get("streams", {}).get("open", 0)),
        clean(", ".join(closed)) or "-",
    )


def _methods(answer: Answer) -> str:
    rows: list[tuple[str, ...]] = [("METHOD", "CALLS", "CALLS/S", "ERRORS", "P50", "P95", "P99")]
    rows += [
        (
            clean(one["method"].removeprefix(_SERVICE)),
            str(one["calls"]),
            f"{float(one['rate']):.1f}",
            _share(int(one["errors"]), int(one["calls"])),
            *(span(seconds_of(one[name])) for name in ("p50", "p95", "p99")),
        )
        for one in answer.get("rpcs", [])
    ]
    title = f"methods of this process, last {span(seconds_of(answer.get('rpcWindow', '0s')))}"
    return section(title, columns(rows, right=set(range(1, 7))) if len(rows) > 1 else ["none was called"])


def _pool(pool: Answer) -> str:
    server = pool.get("serverConnections", {})
    states = ", ".join(f"{clean(state)} {count}" for state, count in sorted(server.items())) or "unknown"
    return (
        f"{pool['size']} of {pool['maxSize']} connections, {pool['inUse']} in use, {pool['waiters']} wait, "
        f"p95 of the wait {span(seconds_of(pool['acquireP95']))}; PostgreSQL has: {states}"
    )


def _breakers(breakers: Sequence[Answer]) -> str:
    rows: list[tuple[str, ...]] = [("BREAKER", "STATE", "FAILURES", "LAST OPENED")]
    rows += [
        (clean(one["name"]), one["state"].removeprefix(_BREAKER), str(one["failures"]), one.get("openedTime", "never"))
        for one in breakers
    ]
    return section("breakers", columns(rows, right={2}))


def _caches(caches: Sequence[Answer]) -> str:
    rows: list[tuple[str, ...]] = [("CACHE", "ENTRIES", "HITS", "MISSES", "HIT RATE", "EVICTIONS")]
    rows += [
        (
            clean(one["name"]),
            *(str(one[name]) for name in ("entries", "hits", "misses")),
            f"{100 * float(one['hitRate']):.1f} %",
            str(one["evictions"]),
        )
        for one in caches
    ]
    return section("caches", columns(rows, right={1, 2, 3, 4, 5}))


def _limits(limits: Answer | None) -> str:
    if limits is None:
        return "unknown"
    kind = "shared over Redis" if limits["shared"] else "not shared: each process goes by its own count"
    counts = f"{limits['buckets']} buckets, {limits['refused']} calls refused, {limits['localDecisions']} decided here"
    return f"{kind}; {counts}"


def _queue(queue: Answer | None) -> str:
    if queue is None:
        return "unknown"
    counts = ", ".join(f"{one['state'].removeprefix(_STATE)} {one['count']}" for one in queue.get("counts", []))
    oldest = queue.get("oldestPendingAge")
    late = "nothing is overdue" if oldest is None else f"the oldest is {span(seconds_of(oldest))} overdue"
    return f"{counts or 'empty'}; {late}{'; there are more than were counted' if queue['truncated'] else ''}"


def _streams(streams: Answer) -> str:
    return f"{streams.get('open', 0)} open, {float(streams.get('signalsPerSecond', 0.0)):.1f} messages/s"


def _migrations(migrations: Answer | None) -> str:
    if migrations is None:
        return "unknown"
    return f"{migrations['applied']} applied, {migrations['known']} known"


def objective_lines(objectives: Sequence[Answer]) -> list[str]:
    """Return a line for each objective of a deployment, below a head; one line if they are not known."""
    if not objectives:
        return ["unknown"]
    rows: list[tuple[str, ...]] = [("OBJECTIVE", "WANTED", "REACHED", "BUDGET LEFT", "EVENTS")]
    for one in objectives:
        events = float(one["events"])
        reached, left = f"{100 * float(one['actual']):.3f} %", f"{100 * float(one['errorBudgetRemaining']):.1f} %"
        wanted = f"{100 * float(one['objective']):g} %"
        rows.append((clean(one["name"]), wanted, reached if events else "-", left, f"{events:.0f}"))
    return columns(rows, right={1, 2, 3, 4})


def _build(build: Answer) -> str:
    revision = build.get("revision")
    return f"{build.get('version')} ({revision})" if revision else f"{build.get('version')}"


def section(title: str, lines: Iterable[str], more: int = 0) -> str:
    """Return lines below a title, and how many more there are."""
    return "\n".join([title, *(f"{_GAP}{line}" for line in lines), *([f"{_GAP}and {more} more"] if more else [])])


def columns(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    """Return rows whose cells stand below each other; the columns `right` are set to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        _GAP.join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def seconds_of(span: str) -> float:
    """Return the seconds of a Duration as JSON has it."""
    return float(span.removesuffix("s"))


def span(seconds: float) -> str:
    """Return a span of time in words, to two or three digits."""
    if seconds < 1.0:
        return f"{1_000 * seconds:.1f} ms" if seconds else "0 s"
    if seconds < 120.0:
        return f"{seconds:.1f} s" if seconds < 10.0 else f"{seconds:.0f} s"
    minutes = seconds / 60.0
    return f"{minutes:.0f} min" if minutes < 120.0 else f"{minutes / 60.0:.0f} h"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def clean(text: str) -> str:
    """Leave out what a terminal would act on: names come from hosts and settings."""
    return "".join(one for one in text if unicodedata.category(one)[0] != "C")
