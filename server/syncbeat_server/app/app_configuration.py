"""Holds the apps' present configuration: reads the apps file, and the credentials it names, again when they change."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError, SyncbeatError
from syncbeat_server.ops.fault_log import FaultLog
from syncbeat_server.ops.files import FileFault, file_version, read_file
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.load import reload_apps
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.push.content.templates import Template

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0

_Mark = tuple[str, tuple[int, int]]


@dataclass(frozen=True)
class CredentialsFile:
    """File of FCM credentials or of a webhook secret as it was read: its content, or the fault (text) of reading it.

    Its time alone would not show each change, since two changes may have the same. But the time counts too: whoever
    rewrites the same credentials may want a new access token.
    """

    held: bytes | str
    written: tuple[int, int]

    @classmethod
    def read(cls, path: Path) -> CredentialsFile:
        """Read the file at `path`."""
        return cls(_held(path), file_version(path))

    @property
    def mark(self) -> _Mark:
        """Return a digest that differs when the file does, so that no credentials are kept just to compare them."""
        digest = self.held if isinstance(self.held, str) else hashlib.sha256(self.held).hexdigest()
        return digest, self.written


@dataclass(frozen=True)
class _Snapshot:
    """Content of the files at one time: the apps file itself, and the mark of each credentials file."""

    document: bytes | str
    accounts: tuple[tuple[Path, _Mark], ...]


class AppConfiguration:
    """Present settings and templates of each app."""

    def __init__(self, settings: Settings, clock: Clock, look_every_s: float = LOOK_EVERY_S) -> None:
        """Raises ConfigurationError: a template is wrong."""
        self._settings = settings
        self._clock = clock
        self._look_every_s = look_every_s
        self._watchers: list[Callable[[], None]] = []
        self._checks: list[Callable[[Mapping[str, AppSettings]], object]] = []
        self._trouble = FaultLog(
            _log, "the apps file cannot be used now; what was read before stays", "the apps file can be used again"
        )
        self.current = settings.all_apps()
        self._templates = _all_templates(self.current)
        self._snapshot = self._read_files()
        self._accounts_in_use = dict(self._snapshot.accounts)
        self._in_use: bytes | str | None = None  # the settings were read a while ago

    def templates(self, app_id: str) -> Mapping[str, Template]:
        """Return the templates of an app."""
        return self._templates.get(app_id, {})

    def signed_sources(self, app_id: str) -> Container[str]:
        """Return the names of an app's sources of webhooks, whether this process serves their door or not."""
        app = self.current.get(app_id)
        return () if app is None else app.sources.keys()

    def require(self, check: Callable[[Mapping[str, AppSettings]], object]) -> None:
        """Adopt only apps for which `check` does not raise: it is asked before any watcher hears of a changed file.

        It is asked in another thread.
        """
        self._checks.append(check)

    def on_change(self, watcher: Callable[[], None]) -> None:
        """Call `watcher` after each change. If it raises, the change is undone for all, and tried again later."""
        self._watchers.append(watcher)

    def read_credentials(self, path: Path) -> CredentialsFile:
        """Read an app's FCM credentials, or a source's secret, and call the watchers once the file differs from this.

        Safe in any thread.

        Later readings are compared with the credentials in use, not with the reading before: if a file is gone, back
        while it is used, and gone again, two readings are the same.
        """
        account = CredentialsFile.read(path)
        self._accounts_in_use[path] = account.mark
        return account

    async def run(self) -> None:
        """Look for changes, for ever. The previous content of a file that cannot be used stays."""
        while True:
            await self._clock.sleep(self._look_every_s)
            try:
                snapshot = await asyncio.to_thread(self._read_files)  # a network's file system may be slow
                await self._apply(snapshot)
            except Exception as error:  # noqa: BLE001  # no file may end a process that serves by its previous content
                self._trouble.report(error.message if isinstance(error, SyncbeatError) else type(error).__name__)

    async def _apply(self, snapshot: _Snapshot) -> None:
        before, self._snapshot = self._snapshot, snapshot
        if any(self._accounts_in_use.get(path, mark) != mark for path, mark in snapshot.accounts):
            self._notify()
        if snapshot.document == self._in_use:
            self._trouble.resolve()
            return
        if isinstance(snapshot.document, str):
            raise ConfigurationError(snapshot.document)
        apps = reload_apps(self._settings, snapshot.document)
        templates = _all_templates(apps)
        # A file that is still being written may end between two tables, and parse: it must stay the same once more.
        if snapshot.document == before.document:
            if apps != self.current:
                for check in self._checks:  # in a thread: they read files, and try mappings on samples
                    await asyncio.to_thread(check, apps)
                self._adopt(apps, templates)
                _log.info("apps read anew", extra={"apps": sorted(apps)})
            self._in_use = snapshot.document
            self._trouble.resolve()

    def _adopt(self, apps: dict[str, AppSettings], templates: dict[str, dict[str, Template]]) -> None:
        before = self.current, self._templates
        self.current, self._templates = apps, templates
        try:
            self._notify()
        except Exception:
            self.current, self._templates = before
            self._notify()
            raise

    def _notify(self) -> None:
        """Call every watcher, and then raise the first of their errors."""
        faults = []
        for watcher in self._watchers:
            try:
                watcher()
            except Exception as fault:  # noqa: BLE001  # the other watchers must learn of the change, or of its end, too
                faults.append(fault)
        if faults:
            raise faults[0]

    def _read_files(self) -> _Snapshot:
        file = self._settings.apps_file
        accounts = {path for app in self.current.values() for path in _credential_files(app)}
        return _Snapshot(
            document=b"" if file is None else _held(file),
            accounts=tuple((path, CredentialsFile.read(path).mark) for path in accounts),
        )


def _credential_files(app: AppSettings) -> list[Path]:
    files = [app.fcm_credentials, *(path for source in app.sources.values() for path in source.secret_files)]
    return [path for path in files if path is not None]


def _held(path: Path) -> bytes | str:
    try:
        return read_file(path)
    except FileFault as fault:
        return str(fault)


def _all_templates(apps: Mapping[str, AppSettings]) -> dict[str, dict[str, Template]]:
    return {app_id: templates_of(app_id, app) for app_id, app in apps.items()}


def templates_of(app_id: str, app: AppSettings) -> dict[str, Template]:
    """Return the templates of an app's settings. Raises ConfigurationError."""
    made = {}
    for name, texts in app.templates.items():
        try:
            made[name] = Template.parse({locale: (text.title, text.body) for locale, text in texts.items()})
        except ValueError as error:
            raise ConfigurationError(f"app {app_id!r}, template {name!r}: {error}") from None
    return made
