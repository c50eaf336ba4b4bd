"""Tests the table of `syncbeat-server status`: as it was looked at and found good."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from syncbeat_server.cli.status_table import status_table

pytestmark = pytest.mark.unit

PROCESS: dict[str, Any] = {
    "process": "rpc-1:41",
    "role": "rpc",
    "startTime": "2030-01-01T10:00:00Z",
    "updateTime": "2030-01-01T12:30:00.250Z",
    "build": {"version": "0.1.0", "revision": "abc123", "python": "3.11.14", "grpc": "1.85.1"},
    "rpcWindow": "300s",
    "rpcs": [
        {"method": "syncbeat.v1.PushService/SendNotification", "calls": "30", "rate": 0.1, "errors": "3"}
        | {"errorRate": 0.1, "p50": "0.004s", "p95": "0.0225s", "p99": "1.250s"},
        {"method": "syncbeat.v1.SyncService/GetHint", "calls": "120000", "rate": 400.0, "errors": "0"}
        | {"errorRate": 0.0, "p50": "0.000800s", "p95": "0.0019s", "p99": "0.0048s"},
    ],
    "pool": {"size": 3, "idle": 2, "inUse": 1, "waiters": 0, "acquireP95": "0.000500s", "maxSize": 8},
    "breakers": [
        {"name": "postgres", "state": "BREAKER_STATE_CLOSED", "failures": 0},
        {"name": "push:default", "state": "BREAKER_STATE_OPEN", "failures": 5, "openedTime": "2030-01-01T12:29:30Z"},
    ],
    "caches": [
        {"name": "tokens", "entries": "1000", "hits": "9000", "misses": "1000", "hitRate": 0.9, "evictions": "0"},
        {"name": "views", "entries": "5", "hits": "0", "misses": "0", "hitRate": 0.0, "evictions": "12"},
    ],
    "limits": {"shared": True, "buckets": "12", "refused": "3", "localDecisions": "0"},
    "streams": {"open": 250, "signalsPerSecond": 12.34},
}
WORKER: dict[str, Any] = {
    "process": "worker-1:7",
    "role": "worker",
    "startTime": "2030-01-01T12:29:00Z",
    "updateTime": "2030-01-01T12:29:56Z",
    "build": {"version": "0.1.1", "revision": "", "python": "3.11.14", "grpc": "1.85.1"},
    "rpcWindow": "56s",
    "rpcs": [],
    "pool": {"size": 1, "idle": 1, "inUse": 0, "waiters": 0, "acquireP95": "0s", "maxSize": 8},
    "breakers": [],
    "caches": [],
    "streams": {"open": 0, "signalsPerSecond": 0.0},
}
ANSWER: dict[str, Any] = {
    **{name: value for name, value in PROCESS.items() if name not in ("role", "updateTime")},
    "pool": {**PROCESS["pool"], "serverConnections": {"idle": 5, "active": 2}},
    "pushQueue": {
        "counts": [
            {"state": "DELIVERY_STATE_IN_FLIGHT", "count": "4"},
            {"state": "DELIVERY_STATE_PENDING", "count": "10001"},
        ],
        "oldestPendingAge": "45s",
        "truncated": True,
    },
    "migrations": {"applied": 23, "known": 23},
    "slos": [
        {"name": "availability", "objective": 0.999, "actual": 0.99995, "errorBudgetRemaining": 0.95}
        | {"events": 120000.0},
        {"name": "push_accepted", "objective": 0.95, "actual": 1.0, "errorBudgetRemaining": 1.0, "events": 0.0},
    ],
    "processes": [PROCESS, WORKER],
    "omittedProcessCount": 0,
}

TABLE = """\
rpc-1:41 answers: syncbeat 0.1.0 (abc123), Python 3.11.14, gRPC 1.85.1

processes (2)
  PROCESS     ROLE      UP       SEEN  BUILD           CALLS/S  ERRORS  POOL  STREAMS  BREAKERS OPEN
  rpc-1:41    rpc      3 h        now  0.1.0 (abc123)    400.1   0.0 %  1/8       250  push:default
  worker-1:7  worker  56 s  4.2 s ago  0.1.1               0.0       -  0/8         0  -

methods of this process, last 5 min
  METHOD                         CALLS  CALLS/S  ERRORS     P50      P95     P99
  PushService/SendNotification      30      0.1  10.0 %  4.0 ms  22.5 ms   1.2 s
  SyncService/GetHint           120000    400.0   0.0 %  0.8 ms   1.9 ms  4.8 ms

pool
  3 of 8 connections, 1 in use, 0 wait, p95 of the wait 0.5 ms; PostgreSQL has: active 2, idle 5

breakers
  BREAKER       STATE   FAILURES  LAST OPENED
  postgres      CLOSED         0  never
  push:default  OPEN           5  2030-01-01T12:29:30Z

caches
  CACHE   ENTRIES  HITS  MISSES  HIT RATE  EVICTIONS
  tokens     1000  9000    1000    90.0 %          0
  views         5     0       0     0.0 %         12

limits
  shared over Redis; 12 buckets, 3 calls refused, 0 decided here

push queue
  IN_FLIGHT 4, PENDING 10001; the oldest is 45 s overdue; there are more than were counted

streams
  250 open, 12.3 messages/s

migrations
  23 applied, 23 known

objectives over 30 days
  OBJECTIVE      WANTED   REACHED  BUDGET LEFT  EVENTS
  availability   99.9 %  99.995 %       95.0 %  120000
  push_accepted    95 %         -      100.0 %       0
"""


def test_status_table_is_as_it_was_looked_at() -> None:
    assert status_table(ANSWER) == TABLE.rstrip("\n")


def test_status_table_says_what_is_unknown() -> None:
    answer = deepcopy(ANSWER)
    del answer["pushQueue"], answer["migrations"], answer["limits"], answer["slos"]
    answer["pool"]["serverConnections"] = {}
    text = status_table(answer)
    assert text.count("unknown") == 5
    assert "PostgreSQL has: unknown" in text


def test_status_table_of_an_idle_process() -> None:
    answer = {**deepcopy(ANSWER), "rpcs": [], "pushQueue": {"counts": [], "truncated": False}}
    text = status_table(answer)
    assert "none was called" in text
    assert "empty; nothing is overdue" in text


def test_status_table_counts_processes_that_are_not_listed() -> None:
    text = status_table({**ANSWER, "omittedProcessCount": 7})
    assert "processes (9)" in text
    assert "  and 7 more" in text


def test_status_table_prints_nothing_that_a_terminal_acts_on() -> None:
    answer = deepcopy(ANSWER)
    answer["processes"][1]["process"] = "evil\x1b[2J\x9b31m\nhost"
    answer["breakers"][0]["name"] = "push:\x07bell"
    text = status_table(answer)
    assert not {one for one in text if not one.isprintable()} - {"\n"}
    assert "evil[2J31mhost" in text
