"""One server process of ours: started in the foreground, awaited until it answers, stopped, or killed."""

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

# Nothing of the caller's environment (PGPORT, PGDATA, LC_ALL, TZ) may change what a server does.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


@dataclass(frozen=True)
class Account:
    """The user a server runs as; -1 stands for the one we are."""

    uid: int = -1
    gid: int = -1


@dataclass(frozen=True)
class Program:
    """How a server is run. Signals are by number; `death_signal` is what it gets when we die."""

    name: str
    command: Sequence[str]
    cwd: Path
    log: Path
    account: Account
    stop_signal: signal.Signals
    death_signal: signal.Signals
    answers: Callable[[int], bool]
    retry_on: Sequence[str] = ()


@dataclass
class Server:
    """A program, running or not. Every method blocks, for milliseconds as a rule."""

    program: Program
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _held_open: int = field(default=-1, repr=False)
    """Reads as ended when the program and all that it started are gone: each of them has the other end."""

    @property
    def pid(self) -> int | None:
        """Its process id, None when it does not run."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    @property
    def ended_by_itself(self) -> int | None:
        """Its exit status (-N for signal N) when it has ended without `stop` or `kill`; None else."""
        return None if self._child is None else self._child.poll()

    def spawn(self) -> None:
        """Start it and do not wait; `wait_ready` does. Nothing happens when it runs already."""
        if self.pid is None:
            self._reap()
            self._child, self._held_open = spawn(self.program)

    def wait_ready(self) -> None:
        """Return when it answers.

        Raises:
            EmbeddedUnavailable: it ended, or does not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + _READY_S
        while self._child is None or not self.program.answers(self._child.pid):
            if self.pid is None:
                text = self._tail()
                # What a killed predecessor leaves goes away by itself in a moment.
                if _over(deadline) or not any(cause in text for cause in self.program.retry_on):
                    raise EmbeddedUnavailable(f"the embedded {self.program.name} did not start: {text}")
                self.spawn()
            if _over(deadline):
                self.kill()
                raise EmbeddedUnavailable(f"the embedded {self.program.name} does not answer: {self._tail()}")
            time.sleep(_POLL_S)

    def start(self) -> None:
        """Start it and return when it answers. Raises EmbeddedUnavailable as `wait_ready` does."""
        self.spawn()
        self.wait_ready()

    def stop(self, stop_signal: signal.Signals | None = None) -> None:
        """End it in order; kill it when it takes too long. Nothing happens when it does not run."""
        if self.pid is not None and self._child is not None:
            self._child.send_signal(stop_signal or self.program.stop_signal)
            try:
                self._child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        self._reap()

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would, and wait for what it started to go too. Nothing happens when it does not
        run."""
        self.stop(signal.SIGKILL)

    def _reap(self) -> None:
        if self._child is not None:
            self._child.wait()
            self._child = None
            # What a killed server started goes on for a moment, and answers.
            ends = select.poll()
            ends.register(self._held_open)
            ends.poll(_STOP_S * 1_000)
            os.close(self._held_open)

    def _tail(self) -> str:
        try:
            return self.program.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return "it left no log"


def launcher(account: Account, death_signal: signal.Signals) -> list[str]:
    """The start of a command line that runs the rest as `account` and ends it by `death_signal` when we die.

    Raises:
        EmbeddedUnavailable: not called from the main thread. The signal comes when the *thread* that started the
            program ends (PR_SET_PDEATHSIG in prctl(2)), and only the main one lives as long as the process.
    """
    if threading.current_thread() is not threading.main_thread():
        raise EmbeddedUnavailable("start the embedded stores from the main thread: they end with the thread")
    return process_group.launch_prefix(death_signal, account.uid, account.gid)


def spawn(program: Program) -> tuple[subprocess.Popen[bytes], int]:
    """Start the program in a session of its own, so that Ctrl-C reaches us and not it; and the end of a pipe which can
    be read when it is gone with all that it started."""
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
        EmbeddedUnavailable: it failed; the message has what it printed.
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


def _over(deadline: float) -> bool:
    return time.monotonic() >= deadline
