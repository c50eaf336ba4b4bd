"""Option `--output` of commands that write a document: a file that appears when it is whole, or standard output."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from syncbeat_server.errors import ConfigurationError


def add_output_option(command: argparse.ArgumentParser) -> None:
    """Add the option to a command."""
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write to this file, which appears once it is whole, readable by nobody else (default: standard output)",
    )


@contextlib.contextmanager
def opened_output(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Yield what writes text. A file gets its name at the end of the block, and is removed if that raises.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    if path is None:
        yield sys.stdout.write
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        # What stands there, of a killed run or of somebody else, would keep its mode and owner, and a link its target.
        partial.unlink(missing_ok=True)
        opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            with open(opened, "w", encoding="utf-8", newline="", buffering=1 << 20) as file:
                yield file.write
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as fault:
        raise ConfigurationError(f"--output: {path}: {fault.strerror}") from None
