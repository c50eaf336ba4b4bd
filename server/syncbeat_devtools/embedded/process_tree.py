"""Starts a program apart from this process, and waits until it and all its children are gone, as after a kill."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from syncbeat_server.errors import EmbeddedUnavailable
from syncbeat_server.ops import process_group

# The caller's environment (PGPORT, PGDATA, LC_ALL, TZ) must not influence a server.
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """The user a server runs as; -1 means our own."""

    uid: int = -1
    gid: int = -1


@dataclass(frozen=True)
class ProcessTree:
    """A program that was started, and the processes that it starts."""

    child: subprocess.Popen[bytes]
    lifeline: int
    """The read end of a pipe whose write end the program and its children hold: it ends once all of them are gone."""

    @property
    def pid(self) -> int:
        """Return the process id of the program."""
        return self.child.pid

    def reap(self, timeout_s: float) -> None:
        """Wait until the program has ended, and for at most `timeout_s` until its children have too. Call it once."""
        self.child.wait()
        # The children of a killed server run for a moment longer, and still answer.
        ends = select.poll()
        ends.register(self.lifeline)
        ends.poll(timeout_s * 1_000)
        os.close(self.lifeline)


def launcher(account: Account, death_signal: signal.Signals) -> list[str]:
    """Return the start of a command line that runs the rest as `account`, and ends it by `death_signal` when we die.

    Raises:
        EmbeddedUnavailable: not called from the main thread. The signal comes when the *thread* that started the
            program ends (PR_SET_PDEATHSIG in prctl(2)), and only the main one lives as long as the process.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EmbeddedUnavailable("start the embedded stores from the main thread: they end with the thread")
    return process_group.launch_prefix(death_signal, account.uid, account.gid)


def start_tree(command: Sequence[str], *, cwd: Path, log: Path) -> ProcessTree:
    """Start a program in a session of its own, so that Ctrl-C does not reach it."""
    ended, held = os.pipe()
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[held],
            )
    except BaseException:
        os.close(ended)
        raise
    finally:
        os.close(held)
    return ProcessTree(child, ended)
