"""Options of the commands that go by a map and an export: both files, and where temporary ones go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import IO

from syncbeat_server.errors import ConfigurationError


def add_map_option(command: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the option of the map, and of the folder for what is too much for memory."""
    command.add_argument(
        "--map", type=Path, required=required, metavar="FILE", help="the map of paths and targets (TOML)"
    )
    command.add_argument(
        "--tmp", type=Path, metavar="FOLDER", help="where temporary files go (default: the system's folder for them)"
    )


def add_export_file(command: argparse.ArgumentParser) -> None:
    """Add the argument of an export of the Realtime Database."""
    command.add_argument("export", type=Path, metavar="EXPORT", help="an export of the Realtime Database (JSON)")


def open_export_file(path: Path) -> IO[bytes]:
    """Open an export. Raises ConfigurationError: it cannot be read, or is no file."""
    from syncbeat_server.transfer.export_faults import require_file

    require_file(path)
    try:
        return path.open("rb")
    except OSError as fault:
        raise ConfigurationError(f"{path}: {fault.strerror}") from None
