"""Runs Prometheus against a server under calls: it takes metrics, rules and configuration, and answers dashboards."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import Serving, serving
from tests.docs.shell_sessions import run_shell, running_shell
from tests.docs.test_make_run import chapters, preamble
from tests.prove.tools import require
from tests.support.ports import free_port
from tests.support.prometheus import RULES_FILE, Query, dashboard_queries, prometheus_program, reason_without_prometheus

pytestmark = [pytest.mark.prove, pytest.mark.timeout(400)]

LONGEST_S = 120.0
READY_S = 30.0
RATE_INTERVAL = "30s"
CLIENT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Queries without series while `make run` plays its story: what goes wrong, or does not happen in it. All others answer.
EMPTY = {
    "auth: Calls not let in, A",
    "auth: Refused by rates, A",
    "auth: Tokens refused, A",
    "auth: Webhooks and events, A",
    "auth: Webhooks and events, B",
    "auth: Webhooks and events, C",
    "hints: Optimality, A",
    "overview: Alarms that fire, A",
    "overview: Calls refused, A",
    "overview: Calls refused, B",
    "overview: Calls refused, C",
    "overview: Errors, A",
    "push: Deliveries that wait, A",
    "push: Funnel, C",
    "push: Oldest delivery that is due, A",
    "push: Token removals braked, A",
    "push: Wake-ups without an answer, A",
    "push: Wake-ups, A",
    "stores: Breakers, A",
    "stores: Rows deleted, A",
}


class Prometheus:
    """A Prometheus on a port of its own."""

    def __init__(self, port: int) -> None:
        self._origin = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        """Tell whether it answers queries."""
        try:
            with CLIENT.open(f"{self._origin}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> dict[str, Any]:
        """Return what the API answers, which also tells of errors."""
        with CLIENT.open(f"{self._origin}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]  # type: ignore[no-any-return]  # as the API documents it

    def has_data(self, query: Query) -> bool:
        """Tell whether a query finds a value now that is a number."""
        result = self.get("query", query=query.promql(RATE_INTERVAL))["result"]
        return any(series["value"][1] != "NaN" for series in result)


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """Run Prometheus until the block ends, as deploy/prometheus configures it but for the target and the intervals."""
    program = prometheus_program("prometheus")
    configuration = RULES_FILE.with_name("prometheus.yml").read_text().replace("syncbeat:9464", target)
    (folder / "prometheus.yml").write_text(configuration.replace("15s", "1s"))
    (folder / RULES_FILE.name).write_text(RULES_FILE.read_text())
    port = free_port()
    command = [
        str(program),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus, ends_at = Prometheus(port), time.perf_counter() + READY_S
            while not prometheus.is_ready():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.perf_counter() < ends_at, "it does not begin"
            yield prometheus
        finally:
            process.terminate()


def play(run: Serving) -> None:
    """Play the story once: a device, a stream, a change, hints, a push, a session."""
    given = preamble(run, "buf")
    register, watch, publish, _, more = chapters(run)
    run_shell(given + register, {})
    with running_shell(given + watch, {}) as watching:
        watching.wait_for("checkpoint")
        run_shell(given + publish, {})
    run_shell(given + more, {})


def test_prometheus_answers_each_query_of_the_dashboards(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    require(request, "Prometheus", reason_without_prometheus())
    target = f"127.0.0.1:{free_port()}"
    variables = {"SYNCBEAT_LISTEN": "127.0.0.1:0", "SYNCBEAT_OPS_LISTEN": target}
    with (
        serving(["demo", "--serve"], "RevokeUser", variables) as run,
        running_prometheus(tmp_path, target) as prometheus,
    ):
        empty, ends_at = dashboard_queries(), time.perf_counter() + LONGEST_S
        while {query.place for query in empty} - EMPTY and time.perf_counter() < ends_at:
            play(run)
            empty = [query for query in empty if not prometheus.has_data(query)]
        assert {query.place for query in empty} - EMPTY == set()
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert rules
        assert not [rule for rule in rules if rule["health"] != "ok"]
        assert not [rule["name"] for rule in rules if rule["state"] == "firing"]
        created = prometheus.get("series", **{"match[]": '{__name__=~"syncbeat_.*_created"}'})
        assert created, "no counter tells when it was made"
