"""Follows the files of secrets, SYNCBEAT_<NAME>_FILE, while a process runs; what is in its environment is fixed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from syncbeat_server.clock import Clock
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ops.settings.load import reload_secrets
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.sources import read_setting_file

_log = logging.getLogger(__name__)


class SecretFiles:
    """Settings of a process with the present content of those files."""

    def __init__(self, settings: Settings, clock: Clock, look_every_s: float) -> None:
        self.current = settings
        self._clock = clock
        self._look_every_s = look_every_s
        self._watchers: list[Callable[[], None]] = []
        self._seen: dict[str, str] | None = None
        self._in_use: dict[str, str] | None = None
        self._trouble = FaultLog(
            _log, "a file of a secret cannot be used now; what was read before stays", "the secrets can be read again"
        )

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` after each change. If it raises, the change is undone for all, and tried again later."""
        self._watchers.append(watcher)

    async def run(self) -> None:
        """Look for changes, for ever; without such files there is nothing to do. Contents that cannot be used wait."""
        if not self.current.secret_files:
            return
        while True:
            await self._clock.sleep(self._look_every_s)
            try:
                self._apply(await asyncio.to_thread(self._read))
            except Exception as error:  # noqa: BLE001  # no file may end a process that serves by its previous content
                self._trouble.report(error.message if isinstance(error, SyncbeatError) else type(error).__name__)

    def _read(self) -> dict[str, str]:
        return {name: read_setting_file(name, path) for name, path in self.current.secret_files.items()}

    def _apply(self, texts: dict[str, str]) -> None:
        before, self._seen = self._seen, texts
        if texts != before:
            return  # a file that is still being written may be whole by chance: it must stay the same once more
        if texts != self._in_use:
            self._adopt(reload_secrets(self.current, texts))
            self._in_use = texts
        self._trouble.resolve()

    def _adopt(self, settings: Settings) -> None:
        before, self.current = self.current, settings
        changed = sorted(name for name in settings.secret_files if getattr(before, name) != getattr(settings, name))
        if not changed:
            return
        try:
            self._tell()
        except Exception:
            self.current = before
            self._tell()
            raise
        _log.info("secrets were read anew", extra={"settings": changed})

    def _tell(self) -> None:
        for watcher in self._watchers:
            watcher()
