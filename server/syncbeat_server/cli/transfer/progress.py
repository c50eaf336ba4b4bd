"""Shows how far a command has read a file: a bar with rate and time left, or a line now and then."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from syncbeat_server.clock import Clock, SystemClock

if TYPE_CHECKING:
    from syncbeat_server.transfer.importing.importer import Progress as ImportProgress

_LINE_EVERY_S = 10.0
_WINDOW_S = 30.0  # rates are of the latest half minute


class Watch:
    """Shows progress on standard error: a bar on a terminal, else a line every ten seconds."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._total = path.stat().st_size if path.is_file() else 0
        self._clock = clock or SystemClock()
        self._started = self._shown = self._clock.monotonic()
        self._first: tuple[int, int] | None = None
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.fields[rate]} places/s"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=_WINDOW_S,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("import", total=self._total, rate="-")
        self._is_bar = console.is_terminal

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, octets: int, progress: ImportProgress) -> None:
        """Show how many octets are read, and how many places are done."""
        now = self._clock.monotonic()
        if self._first is None:  # what an earlier run had done is skipped, and is no part of the rate
            self._first, self._started = (octets, progress.places), now
            if progress.skipped:
                self._say(f"goes on after {progress.skipped} places that an earlier run had done")
        first_octets, first_places = self._first
        elapsed = max(now - self._started, 1e-9)
        rate = (progress.places - first_places) / elapsed
        if self._is_bar:
            self._bar.update(self._task, completed=octets, rate=f"{rate:,.0f}")
            return
        if now - self._shown >= _LINE_EVERY_S:
            self._shown = now
            speed = (octets - first_octets) / elapsed
            left = f"{(self._total - octets) / speed / 60:.1f} min left" if speed else "time left unknown"
            share = 100.0 * octets / max(self._total, 1)
            self._say(f"{share:.1f} % read, {progress.places:,} places, {rate:,.0f} places/s, {left}")

    def _say(self, text: str) -> None:
        if self._is_bar:
            self._bar.console.print(text)
        else:
            print(f"syncbeat-server: {text}", file=sys.stderr, flush=True)
