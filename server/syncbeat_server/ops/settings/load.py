"""Loads settings from the environment, `.env` and the apps file, and validates them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.fault_text import Sources, describe_faults
from syncbeat_server.ops.settings.issuer import RUNNING
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.sources import PREFIX, AppsDocument, read_app_tables, read_values
from syncbeat_server.ops.settings.types import NAME

APPS_FILE_ONLY = frozenset({"apps", "issuers", "templates", "tiers"})
"""Fields of `Settings` that no environment variable sets."""
_APPS_FILE_OF_DEFAULT = frozenset({"issuers", "templates", "tiers"})


def load_settings(environment: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from `environment` (the process's own unless given), then from `env_file`.

    Raises:
        ConfigurationError: a setting is unknown, malformed or unsafe; the message names each and the fix.
    """
    known = set(Settings.model_fields) - APPS_FILE_ONLY
    given = read_values(os.environ if environment is None else environment, env_file, known)
    # An empty variable counts as unset, but where a list can be empty on purpose.
    lists = {name for name, field in Settings.model_fields.items() if isinstance(field.default, tuple)}
    values = {name: one.text for name, one in given.items() if one.text or name in lists}
    places = {name: one.place for name, one in given.items()}
    document = read_app_tables(Path(values["apps_file"])) if "apps_file" in values else AppsDocument({}, "")
    return _validate(values, document.tables, Sources(places, document.text), running=False)


def reload_apps(settings: Settings, document: bytes) -> dict[str, AppSettings]:
    """Return every app as `document`, the present content of the apps file, describes it; the rest stays as it is.

    Raises:
        ConfigurationError: it cannot be used; a start would refuse it too.
    """
    if settings.apps_file is None:
        return settings.all_apps()
    values = {name: getattr(settings, name) for name in Settings.model_fields if name not in APPS_FILE_ONLY}
    tables, text = read_app_tables(settings.apps_file, document)
    return _validate(values, tables, Sources({}, text), running=True).all_apps()


def _validate(
    values: Mapping[str, Any], tables: dict[str, dict[str, Any]], sources: Sources, *, running: bool
) -> Settings:
    default = tables.pop(DEFAULT_APP, {})
    if set(default) - _APPS_FILE_OF_DEFAULT:
        raise ConfigurationError(
            f"{PREFIX}APPS_FILE: the app {DEFAULT_APP!r} is described by the environment, but for its more `issuers`, "
            "its `templates` and its `tiers`"
        )
    if not all(re.fullmatch(NAME, name) for name in tables):
        raise ConfigurationError(f"{PREFIX}APPS_FILE: an app's name is 1 to 64 of A-Z a-z 0-9 _ . -")
    try:
        return Settings.model_validate({**values, **default, "apps": tables}, context=RUNNING if running else None)
    except ValidationError as error:
        raise ConfigurationError(describe_faults(error, sources)) from None
