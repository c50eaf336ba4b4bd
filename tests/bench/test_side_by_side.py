"""`hint_vs_echo` of two revisions, whose servers are loaded in turns."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench import h2load, side_by_side
from bench.measurement import MeasurementFailed
from bench.processes import ROOT
from bench.revision import Side

pytestmark = pytest.mark.process


def test_revision_whose_server_does_not_start_is_a_failed_measurement(tmp_path: Path) -> None:
    python = Side(tmp_path).python
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(MeasurementFailed, match="did not start"):
        side_by_side.measure_round(Side(tmp_path), Side(tmp_path), random.Random(1))


@pytest.mark.skipif(not h2load.is_installed(), reason="needs h2load, which setup does not install")
def test_two_servers_of_one_revision_are_loaded_in_turns() -> None:
    here, there = side_by_side.measure_round(Side(ROOT), Side(ROOT), random.Random(1))
    assert min(here.value, there.value) > 0
    assert here.cpu_us
    assert there.cpu_us
