"""The timeline of a demo: its events with their times, and the claims that held."""

from __future__ import annotations

import json
import time


class Report:
    """Prints each line as it happens, as text for people or as JSON lines."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._started = time.monotonic()
        self.claims = 0
        self.failed: list[str] = []

    def chapter(self, title: str) -> None:
        """Begin a new part of the story."""
        self._print("chapter", title, None, f"\n{title}")

    def note(self, text: str) -> None:
        """Print an event."""
        self._print("note", text, None, f"  {self._clock()}       {text}")

    def claim(self, text: str, holds: bool, seen: object = None) -> None:
        """Print and count a claim; `seen` is the observed value."""
        self.claims += 1
        if not holds:
            self.failed.append(text)
        found = "" if seen is None else f"  ({seen})"
        self._print("claim", text, holds, f"  {self._clock()}  {'ok  ' if holds else 'FAIL'} {text}{found}", seen)

    def finish(self) -> int:
        """Print the verdict. Returns the exit status."""
        held = self.claims - len(self.failed)
        verdict = f"{held} of {self.claims} claims held"
        self._print("verdict", verdict, not self.failed, f"\n{verdict}")
        for text in self.failed:
            self._print("failed", text, False, f"  FAIL {text}")
        return 1 if self.failed else 0

    def _clock(self) -> str:
        return f"{time.monotonic() - self._started:7.3f}s"

    def _print(self, kind: str, text: str, ok: bool | None, line: str, seen: object = None) -> None:
        if not self._as_json:
            print(line, flush=True)
            return
        entry: dict[str, object] = {"t": round(time.monotonic() - self._started, 3), "kind": kind, "text": text}
        if ok is not None:
            entry["ok"] = ok
        if seen is not None:
            entry["seen"] = seen if isinstance(seen, int | float | str) else str(seen)
        print(json.dumps(entry), flush=True)
