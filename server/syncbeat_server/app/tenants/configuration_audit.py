"""Records in the audit log which apps are configured, and that their settings changed, keys and issuers among them."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Mapping
from typing import Any

import orjson

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.audit.service import record_configuration
from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.push.delivery.channel import app_secret
from syncbeat_server.storage.postgres.database import Database

_log = logging.getLogger(__name__)

_DIGEST_HEX = 16


class ConfigurationAudit:
    """Compares the apps of this process with those of the log when it starts, and after each change of the apps file.

    Every process does, and the first one records what is new: so also a change is recorded that came with a restart.
    """

    def __init__(self, database: Database, apps: AppConfiguration) -> None:
        self._database = database
        self._apps = apps
        self._recorded: Mapping[str, AppSettings] | None = None
        self._changed = asyncio.Event()
        apps.on_change(self._changed.set)

    async def run(self) -> None:
        """Record after each change, for ever. A change that cannot be recorded now is, with the next one or start."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.record()

    async def record(self) -> None:
        """Record what is not as the log has it; only warn if the database does not answer."""
        now, before = self._apps.current, self._recorded
        if now is before:
            return  # the files of credentials changed, and no setting
        try:
            secret = await app_secret(self._database, DEFAULT_APP)
            digests = {app_id: settings_digest(secret, app) for app_id, app in now.items()}
            await record_configuration(self._database, digests, _changed_names(before, now))
        except SyncbeatError as error:
            _log.warning("changes of apps are not in the audit log", extra={"reason": error.reason})
        else:
            self._recorded = now


def settings_digest(secret: bytes, app: AppSettings) -> str:
    """Return what changes when a setting of an app does, and tells nothing of the setting to who lacks `secret`.

    Settings at their defaults do not count, so that a release that adds a setting changes no app.
    """
    given = app.model_dump(exclude_defaults=True)
    text = orjson.dumps(given, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hmac.digest(secret, b"settings\0" + text, "sha256").hex()[:_DIGEST_HEX]


def _plain(value: Any) -> Any:
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _changed_names(before: Mapping[str, AppSettings] | None, now: Mapping[str, AppSettings]) -> dict[str, str]:
    if before is None:
        return {}
    return {
        app_id: " ".join(name for name in type(app).model_fields if getattr(app, name) != getattr(before[app_id], name))
        for app_id, app in now.items()
        if app_id in before and app != before[app_id]
    }
