"""Names who runs a command, for the audit log."""

from __future__ import annotations

import getpass
import socket

_LONGEST = 64


def operator_name() -> str:
    """Return `operator:LOGIN@HOST` of this process, as the operating system says: nobody has proven it to us."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError):
        login = "unknown"  # a container may run under a uid without a name
    return f"operator:{_printable(login)}@{_printable(socket.gethostname())}"


def _printable(text: str) -> str:
    return "".join(one for one in text if one.isprintable() and one.isascii())[:_LONGEST]
