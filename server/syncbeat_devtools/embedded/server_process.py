"""One server process: started in the foreground, awaited until it is ready, stopped, or killed."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from syncbeat_devtools.embedded.process_tree import ENVIRONMENT, Account, ProcessTree, launcher, start_tree
from syncbeat_server.errors import EmbeddedUnavailable

_READY_S = 60.0
_STOP_S = 10.0
_POLL_S = 0.005
_LOG_TAIL_BYTES = 2_000


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
    _tree: ProcessTree | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Return its process id; None if it does not run."""
        return self._tree.pid if self._tree is not None and self._tree.child.poll() is None else None

    @property
    def unexpected_status(self) -> int | None:
        """Return its exit status (-N for signal N) if it ended without `stop` or `kill`; None otherwise."""
        return None if self._tree is None else self._tree.child.poll()

    def spawn(self) -> None:
        """Start it without waiting; `wait_ready` waits. Does nothing if it runs already."""
        if self.pid is None:
            self._reap()
            program = self.program
            command = [*launcher(program.account, program.death_signal), *program.command]
            self._tree = start_tree(command, cwd=program.cwd, log=program.log)

    def wait_ready(self) -> None:
        """Wait until it answers.

        Raises:
            EmbeddedUnavailable: it ended, or does not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + _READY_S
        while self._tree is None or not self.program.is_ready(self._tree.pid):
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
        if self.pid is not None and self._tree is not None:
            self._tree.child.send_signal(stop_signal or self.program.stop_signal)
            try:
                self._tree.child.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._tree.child.kill()
        self._reap()

    def kill(self) -> None:
        """End it and its children by SIGKILL, as a crash would. Does nothing if it does not run."""
        self.stop(signal.SIGKILL)

    def _reap(self) -> None:
        if self._tree is not None:
            tree, self._tree = self._tree, None
            tree.reap(_STOP_S)

    def _log_tail(self) -> str:
        try:
            return self.program.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return "it left no log"


def run(name: str, command: Sequence[str], *, cwd: Path, account: Account, stdin: str = "") -> None:
    """Run a program to its end.

    Raises:
        EmbeddedUnavailable: it failed; the message has its output.
    """
    done = subprocess.run(
        [*launcher(account, signal.SIGKILL), *command],
        cwd=cwd,
        env=ENVIRONMENT,
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
