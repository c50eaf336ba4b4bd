"""Proves `syncbeat-server soak`: an hour without a finding, and an outage that turns its verdict and back again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from syncbeat_devtools.demo.stage import Stage
from tests.support.fake_clock import wait_until
from tests.support.soaks import finish_soak, saved_elapsed_s, start_soak

pytestmark = pytest.mark.prove

Record = Callable[[str, dict[str, object]], None]

PROOF = Path(__file__).parents[2] / "docs" / "proof"
OUTAGE_AT_S, OUTAGE_S, RUN_S = 40.0, 20.0, 150.0
# The last window has 10 s, and pools and breakers take some seconds to find PostgreSQL back.
BACK_S = 10.0 + 15.0
# Of an outage alone: the machine may be busy, and what waits for PostgreSQL is slow before it fails.
NOT_OF_LATENCY = ("--objective", "hint_p95_s=5", "--objective", "p95_s=10", "--objective", "staleness_s=60")


@pytest.mark.timeout(4 * 3_600)
async def test_hour_of_soak_is_ok(stage: Stage, free_port: int, tmp_path: Path, record: Record) -> None:
    duration, rate = os.environ.get("SOAK_DURATION", "1h"), os.environ.get("SOAK_RATE", "10")
    ports = f"127.0.0.1:{free_port}"
    stage.settings["SYNCBEAT_OPS_LISTEN"] = ports
    # The cache of checked tokens fills for as long as tokens live: an hour by default, so that this run would see
    # it fill to its end. With five minutes it is full before the warm-up is over.
    stage.settings["SYNCBEAT_ACCESS_TOKEN_S"] = "300"
    await stage.start_server()
    del stage.settings["SYNCBEAT_OPS_LISTEN"]
    await stage.start_worker()
    out = tmp_path / "soak"
    child = await start_soak(stage, out, "--duration", duration, "--rate", rate, "--metrics", f"http://{ports}/metrics")
    code, report, text = await finish_soak(child, out)
    (PROOF / "soak-hour.html").write_text((out / "report.html").read_text())
    figures: dict[str, object] = {"command": f"SOAK_DURATION={duration} make prove ARGS='-k hour_of_soak'"}
    record("soak-hour", {**figures, **{name: one for name, one in report.items() if name != "series"}})
    assert (code, report["verdict"]) == (0, "OK"), text


@pytest.mark.timeout(600)
async def test_soak_verdict_turns_to_rollback_while_postgres_is_down_and_back(
    stage: Stage, tmp_path: Path, record: Record
) -> None:
    await stage.start_server()
    await stage.start_worker()
    out = tmp_path / "soak"
    load = ("--duration", f"{RUN_S:.0f}s", "--rate", "20", "--mix", "poll=40,publish=40", "--save-every", "1")
    child = await start_soak(stage, out, *load, "--ignore-server", *NOT_OF_LATENCY)
    await wait_until(lambda: saved_elapsed_s(out) >= OUTAGE_AT_S, 180.0)
    stage.stores.kill_postgres()
    try:
        down_s = saved_elapsed_s(out)
        await wait_until(lambda: saved_elapsed_s(out) >= down_s + OUTAGE_S, 60.0)
    finally:
        stage.stores.start_postgres()
    code, report, text = await finish_soak(child, out)
    changes = report["verdict_changes"]
    record(
        "soak-outage",
        {
            "command": "make prove ARGS='-k soak_verdict'",
            "postgres_killed_at_s": round(down_s, 1),
            "down_s": OUTAGE_S,
            "verdict_changes": changes,
            "verdict": report["verdict"],
            "triggers": report["triggers"],
            "operations": report["operations"],
            "causes": report["causes"],
        },
    )
    rollbacks = [at_s for at_s, verdict in changes if verdict == "ROLLBACK"]
    assert rollbacks, text
    assert down_s <= rollbacks[0] <= down_s + OUTAGE_S
    assert changes[0][1] == changes[-1][1] == "OK"
    assert changes[-1][0] <= down_s + OUTAGE_S + BACK_S
    # Over by the end: looked at, and not taken back.
    assert (code, report["verdict"]) == (3, "WARN"), text
