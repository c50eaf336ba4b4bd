"""The apps as they are configured now: the apps file and the credentials it names are read anew when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.config import AppSettings, Settings, reread_apps
from syncbeat_server.push.templates import Template

_log = logging.getLogger(__name__)

_LOOK_S = 2.0

Stamp = tuple[tuple[str, int, int], ...]


class Apps:
    """How each app's devices are reached, and what its notifications may say. Issuers stay as at the start."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises ConfigurationError: a template is wrong."""
        self._settings = settings
        self._clock = clock
        self._watchers: list[Callable[[], None]] = []
        self.current = settings.all_apps()
        self._templates = _all_templates(self.current)
        self._stamp = self._look()

    def templates(self, app_id: str) -> Mapping[str, Template]:
        """The templates of an app."""
        return self._templates.get(app_id, {})

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change; it may raise ConfigurationError."""
        self._watchers.append(changed)

    async def run(self) -> None:
        """Look for changes, for ever. What cannot be used is said once and left alone."""
        while True:
            await self._clock.sleep(_LOOK_S)
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reload()

    def _reload(self) -> None:
        try:
            apps = reread_apps(self._settings)
            templates = _all_templates(apps)
        except ConfigurationError as error:
            _log.error("the apps file cannot be used now; what was read before stays", extra={"fault": error.message})
            return
        self.current, self._templates = apps, templates
        for changed in self._watchers:
            changed()
        _log.info("apps read anew", extra={"apps": sorted(apps)})

    def _look(self) -> Stamp:
        files = [self._settings.apps_file, *(app.fcm_credentials for app in self.current.values())]
        return tuple(stamp_of(path) for path in files if path is not None)


def stamp_of(path: Path) -> tuple[str, int, int]:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return (str(path), 0, 0)
    return (str(path), found.st_mtime_ns, found.st_ino)


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
