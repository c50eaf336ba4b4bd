"""Child processes of a demo: started with their settings, awaited, killed, and never left behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import new_signing_key
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.process_group import launch_prefix

_READY_S = 30.0
_STOP_S = 30.0
READY_WORD = "serving on "
_OWN_NAME = "syncbeat-server: "


class DemoFailed(SyncbeatError):
    """A process of the demo did not start; the message has the end of its log."""


class Process:
    """A `syncbeat-server` command as a child process."""

    def __init__(self, child: asyncio.subprocess.Process, address: str, log: Path) -> None:
        self._child = child
        self.address = address
        self._log = log

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._child.pid

    async def kill(self) -> None:
        """End it by SIGKILL."""
        if self._child.returncode is None:
            self._child.kill()
        await self._child.wait()

    async def wait(self) -> int:
        """Wait until it ends. Returns its exit status."""
        return await self._child.wait()

    async def stop(self) -> int:
        """End it by SIGTERM, as an orchestrator does. Returns its exit status."""
        if self._child.returncode is None:
            self._child.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self._child.wait(), _STOP_S)
        except TimeoutError:
            await self.kill()
            return -signal.SIGKILL

    def log_text(self) -> str:
        """Return its log."""
        return self._log.read_text(encoding="utf-8", errors="replace")


async def start_process(
    arguments: list[str],
    settings: Mapping[str, str],
    log: Path,
    *,
    folder: Path | None = None,
    ready_s: float = _READY_S,
    interpreter: str = sys.executable,
) -> Process:
    """Start `syncbeat-server ARGUMENTS` and wait up to `ready_s` until it reports that it serves.

    It is run by `interpreter`, has these settings and no others, and runs in `folder`: that of its log unless another
    is named, since it reads a `.env` there.

    Raises:
        DemoFailed: it ended, or did not report in time; the message has the end of its log.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    with log.open("ab") as output:
        child = await asyncio.create_subprocess_exec(
            *launch_prefix(signal.SIGTERM),
            interpreter,
            "-m",
            "syncbeat_server.cli",
            *arguments,
            env={**own, **settings},
            cwd=folder or log.parent,
            stdout=subprocess.PIPE,
            stderr=output,
        )
    process = Process(child, "", log)
    try:
        process.address = await asyncio.wait_for(_address(child), ready_s)
    except (TimeoutError, EOFError):
        await process.kill()
        # The command that reports this names itself.
        tail = "\n".join(line.removeprefix(_OWN_NAME) for line in process.log_text().splitlines()[-5:])
        raise DemoFailed(f"'syncbeat-server {arguments[0]}' did not start:\n{tail}") from None
    return process


async def _address(child: asyncio.subprocess.Process) -> str:
    if child.stdout is None:
        raise EOFError
    while line := await child.stdout.readline():
        _, found, address = line.decode().strip().partition(READY_WORD)
        if found:
            return address
    raise EOFError


@dataclass(frozen=True)
class Identity:
    """The secrets of one demo, generated anew each time: the servers' settings, and the backend's credentials."""

    jwt_secret: str
    service_token: str
    session_keys: str

    @classmethod
    def new(cls) -> Identity:
        """Generate random secrets."""
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), new_signing_key("demo").decode())

    @property
    def key(self) -> KeyRow:
        """Return the key with which the app's own backend signs its users' tokens."""
        return KeyRow(Issuer("default", "syncbeat", uuid_subjects=False), "demo", "HS256", self.jwt_secret)

    def settings(self) -> dict[str, str]:
        """Return the secrets as settings of the servers."""
        digest = hashlib.sha256(self.service_token.encode()).hexdigest()
        return {
            "SYNCBEAT_JWT_SECRETS": f"demo={self.jwt_secret}",
            "SYNCBEAT_JWT_SUBJECTS": "any",
            "SYNCBEAT_SERVICE_TOKENS": f"backend:{digest}:*:*",
            "SYNCBEAT_SESSION_KEYS": self.session_keys,
            "SYNCBEAT_SESSION_SECRETS": f"demo={self.jwt_secret}",
        }
