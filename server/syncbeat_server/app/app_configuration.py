"""The apps as they are configured now: the apps file and the credentials it names are read anew when they change."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
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

_LOOK_S = 2.0

_Mark = tuple[str, tuple[int, int]]


@dataclass(frozen=True)
class AccountFile:
    """A file of FCM credentials as it was read; text: why it could not be.

    Not its time alone, which says too little: two changes may have the same, and so may the file before and after one.
    But its time, too: whoever writes the same credentials anew may want a new access token.
    """

    held: bytes | str
    written: tuple[int, int]

    @classmethod
    def read(cls, path: Path) -> AccountFile:
        """Read the file at `path`."""
        return cls(_held(path), file_version(path))

    @property
    def mark(self) -> _Mark:
        """A short value that differs when the file does: credentials are not kept for comparing alone."""
        digest = self.held if isinstance(self.held, str) else hashlib.sha256(self.held).hexdigest()
        return digest, self.written


@dataclass(frozen=True)
class _Seen:
    """What the files held at one look: the apps file itself, and a mark of each account."""

    document: bytes | str
    accounts: tuple[tuple[Path, _Mark], ...]


class Apps:
    """How each app's devices are reached, and what its notifications may say. Issuers stay as at the start."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises ConfigurationError: a template is wrong."""
        self._settings = settings
        self._clock = clock
        self._watchers: list[Callable[[], None]] = []
        self._trouble = FaultLog(
            _log, "the apps file cannot be used now; what was read before stays", "the apps file can be used again"
        )
        self.current = settings.all_apps()
        self._templates = _all_templates(self.current)
        self._seen = self._look()
        self._accounts_in_use = dict(self._seen.accounts)
        self._in_use: bytes | str | None = None  # the settings were read a while ago

    def templates(self, app_id: str) -> Mapping[str, Template]:
        """The templates of an app."""
        return self._templates.get(app_id, {})

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change. When it raises, the change is undone for all, and tried again later."""
        self._watchers.append(changed)

    def read_account(self, path: Path) -> AccountFile:
        """Read an app's FCM credentials, and tell watchers when the file becomes another than this. Any thread may.

        Looks are compared with what is in use, not with the look before: of a file that is gone, back while it is
        read, and gone again, two looks see the same.
        """
        account = AccountFile.read(path)
        self._accounts_in_use[path] = account.mark
        return account

    async def run(self) -> None:
        """Look for changes, for ever. What cannot be used is said once and left alone, whatever is wrong with it."""
        while True:
            await self._clock.sleep(_LOOK_S)
            try:
                seen = await asyncio.to_thread(self._look)  # a network's file system may be slow
                self._follow(seen)
            except Exception as error:  # noqa: BLE001  # no file may end the process that serves by what it read before
                self._trouble.report(error.message if isinstance(error, SyncbeatError) else type(error).__name__)

    def _follow(self, seen: _Seen) -> None:
        before, self._seen = self._seen, seen
        if any(self._accounts_in_use.get(path, mark) != mark for path, mark in seen.accounts):
            self._tell()
        if seen.document == self._in_use:
            self._trouble.resolve()
            return
        if isinstance(seen.document, str):
            raise ConfigurationError(seen.document)
        apps = reload_apps(self._settings, seen.document)
        templates = _all_templates(apps)
        # What is being written may end between two tables, and is good TOML then: it has to stay for one more look.
        if seen.document == before.document:
            if apps != self.current:
                self._adopt(apps, templates)
                _log.info("apps read anew", extra={"apps": sorted(apps)})
            self._in_use = seen.document
            self._trouble.resolve()

    def _adopt(self, apps: dict[str, AppSettings], templates: dict[str, dict[str, Template]]) -> None:
        before = self.current, self._templates
        self.current, self._templates = apps, templates
        try:
            self._tell()
        except Exception:
            self.current, self._templates = before
            self._tell()
            raise

    def _tell(self) -> None:
        """Call every watcher, and then raise what the first raised that did."""
        faults = []
        for changed in self._watchers:
            try:
                changed()
            except Exception as fault:  # noqa: BLE001  # those after it hear of the change, or of its end, too
                faults.append(fault)
        if faults:
            raise faults[0]

    def _look(self) -> _Seen:
        file = self._settings.apps_file
        accounts = {app.fcm_credentials for app in self.current.values() if app.fcm_credentials}
        return _Seen(
            document=b"" if file is None else _held(file),
            accounts=tuple((path, AccountFile.read(path).mark) for path in accounts),
        )


def _held(path: Path) -> bytes | str:
    try:
        return read_file(path)
    except FileFault as fault:
        return str(fault)


def _all_templates(apps: Mapping[str, AppSettings]) -> dict[str, dict[str, Template]]:
    return {app_id: _templates(app_id, app) for app_id, app in apps.items()}


def _templates(app_id: str, app: AppSettings) -> dict[str, Template]:
    made = {}
    for name, texts in app.templates.items():
        try:
            made[name] = Template.parse({locale: (text.title, text.body) for locale, text in texts.items()})
        except ValueError as error:
            raise ConfigurationError(f"app {app_id!r}, template {name!r}: {error}") from None
    return made
