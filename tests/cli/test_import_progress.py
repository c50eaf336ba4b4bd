"""Progress of commands that read a file: lines with rate and time left where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncbeat_server.cli.transfer.progress import Watch
from syncbeat_server.transfer.importing.importer import Progress
from syncbeat_server.transfer.importing.report import ImportReport
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit


async def test_lines_tell_rate_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export = tmp_path / "export.json"
    export.write_bytes(b" " * 1_000)
    clock = FakeClock()

    with Watch(export, clock) as watch:
        for step in range(4):
            watch.show(100 + 100 * step, Progress(5_000 + 1_000 * step, ImportReport(), skipped=4_000))
            await clock.advance(8)

    assert capsys.readouterr().err.splitlines() == [
        "syncbeat-server: goes on after 4000 places that an earlier run had done",
        "syncbeat-server: 30.0 % read, 7,000 places, 125 places/s, 0.9 min left",
    ]


async def test_a_file_without_progress_has_no_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()

    with Watch(tmp_path / "none.json", clock) as watch:
        watch.show(0, Progress(0, ImportReport()))
        await clock.advance(11)
        watch.show(0, Progress(0, ImportReport()))

    assert "time left unknown" in capsys.readouterr().err
