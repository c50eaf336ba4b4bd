"""Functions that tests run in a process of their own, which imports little for them."""

from __future__ import annotations

import os
import signal


def pid() -> int:
    """The process that runs this."""
    return os.getpid()


def niceness() -> int:
    """Return its niceness: how far it is behind others."""
    return os.nice(0)


def die(how: int) -> None:
    """End its process by a signal."""
    os.kill(os.getpid(), how)


def die_once(path: str) -> int:
    """End its process if no other has done so; else its id."""
    if not os.path.exists(path):
        with open(path, "x"):
            die(signal.SIGKILL)
    return os.getpid()


def never_end() -> None:
    """Work for ever."""
    while True:
        pass


def refuse(said: str) -> None:
    """Raise what callers are told."""
    raise ValueError(said)


def fail(said: str) -> None:
    """Raise what they are not."""
    raise KeyError(said)
