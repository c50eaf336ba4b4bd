"""One server process: started in the foreground, awaited until it is ready, stopped, or killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from syncbeat_server.errors import EmbeddedUnavailable
from syncbeat_server.ops import process_group

_READY_S = 60.0
_STOP_S = 10.0
_POLL_S = 0.005
_LOG_TAIL_BYTES = 2_000

# The caller's environment (PGPORT, PGDATA, LC_ALL, TZ) must not influence a server.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """The user a server runs as; -1 means our own."""

    uid: int = -1
    gid: int = -1


@dataclass(frozen=True)
class Program:
    """The command of a server and its properties. `death_signal` is sent to it when our process dies."""

    name: str
    command: Sequence[str]
    cwd: Path
    log: Path
    account: Account
    stop_signal: signal.Signals
    death_signal: signal.Signals
    is_ready: Callable[[int], bool]
    retry_on: Sequence[str] = ()


@dataclass
class Server:
    """A program, running or not. Every method blocks, usually for milliseconds."""

    program: Program
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _lifeline: int = field(default=-1, repr=False)
    """The read end of a pipe whose write end the program and its children hold: it ends once all of them are gone."""

    @property
    def pid(self) -> int | None:
        """Return its process id; None if it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def unexpected_status(self) -> int | None:
        """Return its exit status (-N for signal N) if it ended without `stop` or `kill`; None otherwise."""
        return None if self._child is None else self._child.poll()

    def spawn(self) -> None:
        """Start it without waiting; `wait_ready` waits. Does nothing if it runs already."""
        if self.pid is None:
            self._reap()
            self._child, self._lifeline = spawn(self.program)

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            EmbeddedUnavailable: it ended, or does not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + _READY_S
        while self._child is None or not self.program.is_ready(self._child.pid):
            if self.pid is None:
                text = self._log_tail()
                # A killed predecessor's lock and shared memory go away by themselves in a moment.
                if _passed(deadline) or not any(cause in text for cause in self.program.retry_on):
                    raise EmbeddedUnavailable(f"the embedded {self.program.name} did not start: {text}")
                self.spawn()
            if _passed(deadline):
                self.kill()
                raise EmbeddedUnavailable(f"the embedded {self.program.name} does not answer: {self._log_tail()}")
            time.sleep(_POLL_S)

    def start(self) -> None:
        """Start it and wait until it answers. Raises as `wait_ready`."""
        self.spawn()
        self.wait_ready()

    def stop(self, stop_signal: signal.Signals | None = None) -> None:
        """Stop it gracefully, or kill it if that takes too long. Does nothing if it does not run."""
        if self.pid is not None and self._child is not None:
            self._child.send_signal(stop_signal or self.program.stop_signal)
            try:
                self._child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._reap()

    def kill(self) -> None:
        """End it and its children by SIGKILL, as a crash would. Does nothing if it does not run."""
        self.stop(signal.SIGKILL)

    def _reap(self) -> None:
        if self._child is not None:
            self._child.wait()
            self._child = None
            # The children of a killed server run for a moment longer, and still answer.
            ends = select.poll()
            ends.register(self._lifeline)
            ends.poll(_STOP_S * 1_000)
            os.close(self._lifeline)

    def _log_tail(self) -> str:
        try:
            return self.program.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return "it left no log"


def launcher(account: Account, death_signal: signal.Signals) -> list[str]:
    """Return the start of a command line that runs the rest as `account`, and ends it by `death_signal` when we die.

    Raises:
        EmbeddedUnavailable: not called from the main thread. The signal comes when the *thread* that started the
            program ends (PR_SET_PDEATHSIG in prctl(2)), and only the main one lives as long as the process.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EmbeddedUnavailable("start the embedded stores from the main thread: they end with the thread")
    return process_group.launch_prefix(death_signal, account.uid, account.gid)


def spawn(program: Program) -> tuple[subprocess.Popen[bytes], int]:
    """Start the program in its own session, so that Ctrl-C does not reach it.

    Returns:
        The process, and a pipe that becomes readable once the program and all its children are gone.
    """
    ended, held = os.pipe()
    try:
        with program.log.open("wb") as log:
            child = subprocess.Popen(
                [*launcher(program.account, program.death_signal), *program.command],
                cwd=program.cwd,
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[held],
            )
    except BaseException:
        os.close(ended)
        raise
    finally:
        os.close(held)
    return child, ended


def run(name: str, command: Sequence[str], *, cwd: Path, account: Account, stdin: str = "") -> None:
    """Run a program to its end.

    Raises:
        EmbeddedUnavailable: it failed; the message has its output.
    """
    done = subprocess.run(
        [*launcher(account, signal.SIGKILL), *command],
        cwd=cwd,
        env=_ENVIRONMENT,
        input=stdin,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        raise EmbeddedUnavailable(f"{name} failed: {done.stdout[-_LOG_TAIL_BYTES:].strip()}")


def _passed(deadline: float) -> bool:
    return time.monotonic() >= deadline
