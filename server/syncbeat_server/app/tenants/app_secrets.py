"""Keeps the secrets that sign the ack tokens of each app, read when they are first needed."""

from __future__ import annotations

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.push.delivery.channel import app_secret
from syncbeat_server.storage.postgres.database import Database


class AppSecrets:
    """Secrets of the apps that are configured. An app that leaves the file loses its own here: it may be erased."""

    def __init__(self, database: Database, apps: AppConfiguration) -> None:
        self._database = database
        self._apps = apps
        self._known: dict[str, bytes] = {}
        apps.on_change(self._forget_removed)

    async def read_all(self) -> None:
        """Read the secrets of all apps, so that the first calls need not wait. Raises DependencyDown."""
        for app_id in list(self._apps.current):
            await self.read(app_id)

    async def read(self, app_id: str) -> bytes | None:
        """Return an app's secret, or None if the app is not configured: none is made for what a caller invents.

        Raises:
            DependencyDown: it was not read yet, and the database does not answer.
        """
        if app_id not in self._apps.current:
            return None
        known = self._known.get(app_id)
        if known is None:
            known = await app_secret(self._database, app_id)
            if app_id in self._apps.current:
                self._known[app_id] = known
        return known

    def _forget_removed(self) -> None:
        for app_id in self._known.keys() - self._apps.current.keys():
            del self._known[app_id]
