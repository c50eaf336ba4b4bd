"""Commands of `syncbeat-server` that serve for a while, as readers of the pages run them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

ENDS_S = 60.0


@dataclass(frozen=True)
class Serving:
    """A command that serves, and the lines it has printed until it did."""

    lines: tuple[str, ...]

    def exports(self) -> dict[str, str]:
        """The variables that it says to put into another shell."""
        lines = (shlex.split(line)[1] for line in self.lines if line.startswith("export "))
        return dict(line.split("=", 1) for line in lines)

    def after(self, words: str) -> str:
        """The text after these words."""
        return next(line.partition(words)[2] for line in self.lines if words in line)


@contextmanager
def serving(arguments: list[str], last_line: str, variables: Mapping[str, str]) -> Iterator[Serving]:
    """Run a `syncbeat-server` command until the block ends; it serves once it has printed `last_line`."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    command = [sys.executable, "-m", "syncbeat_server.cli", *arguments]
    with subprocess.Popen(command, env={**own, **variables}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if last_line in line:
                    break
            assert lines, f"{arguments} ended"
            assert last_line in lines[-1], lines
            yield Serving(tuple(lines))
        finally:
            process.terminate()
            process.stdout.read()
            process.wait(ENDS_S)
