"""Loads settings from the environment, `.env` and the apps file, and validates them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from syncbeat_server.defaults import DEFAULT_APP
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.fault_text import Sources, describe_faults
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.sources import PREFIX, AppsDocument, read_app_tables, read_values
from syncbeat_server.ops.settings.types import NAME, RUNNING

APPS_FILE_ONLY = frozenset({"apps", "issuers", "templates", "tiers", "sources"})
"""Fields of `Settings` that no environment variable sets."""
ROTATING = frozenset({"service_tokens", "admin_tokens", "session_keys", "session_secrets", "database_url", "redis_url"})
"""Settings that a running process reads again if they are given by a file of their own, NAME_FILE."""
_APPS_FILE_OF_DEFAULT = APPS_FILE_ONLY - {"apps"}


class LoadedSettings(NamedTuple):
    """Settings, and the faults that keep them from being used.

    Attributes:
        settings: The settings as far as more can be found out about them: with faults, when only files are missing.
        faults: A line each.
    """

    settings: Settings | None
    faults: list[str]


def load_settings(environment: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")) -> Settings:
    """Read the settings from `environment` (the process's own unless given), then from `env_file`.

    Raises:
        ConfigurationError: a setting is unknown, malformed or unsafe; the message names each and the fix.
    """
    settings, faults = load_with_faults(environment, env_file)
    if settings is None or faults:
        raise ConfigurationError("\n".join(faults))
    return settings


def load_with_faults(
    environment: Mapping[str, str] | None = None, env_file: Path | None = Path(".env")
) -> LoadedSettings:
    """Read the settings as `load_settings` does, and return them with all faults instead of raising."""
    known = set(Settings.model_fields) - APPS_FILE_ONLY
    given = read_values(os.environ if environment is None else environment, env_file, known)
    # An empty variable counts as unset, but where a list can be empty on purpose.
    lists = {name for name, field in Settings.model_fields.items() if isinstance(field.default, tuple)}
    values = {name: one.text for name, one in given.texts.items() if one.text or name in lists}
    places = {name: one.place for name, one in given.texts.items()}
    faults, document = [*given.faults], AppsDocument({}, "")
    try:
        if "apps_file" in values:
            document = read_app_tables(Path(values["apps_file"]))
        _require_app_names(document.tables)
    except ConfigurationError as error:
        faults.append(error.message)
        document = AppsDocument({}, "")
    unread = bool(faults)
    described = _model_input(values, document.tables)
    try:
        settings = Settings.model_validate(described)
    except ValidationError as error:
        # What does not go together may be good once the sources can be read.
        sources = Sources(places, document.text)
        faults += describe_faults(error, sources, one_by_one=unread)
        return LoadedSettings(None, faults) if unread else _without_files(described, sources, faults)
    settings.secret_files.update({name: path for name, path in given.files.items() if name in ROTATING})
    return LoadedSettings(None if unread else settings, faults)


def reload_secrets(settings: Settings, texts: Mapping[str, str]) -> Settings:
    """Return the settings with these texts in place of those that the files of `settings.secret_files` had.

    Raises:
        ConfigurationError: they cannot be used; a start would refuse them too.
    """
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    try:
        fresh = Settings.model_validate({**values, **texts}, context=RUNNING)
    except ValidationError as error:
        raise ConfigurationError("\n".join(describe_faults(error, Sources({}, "")))) from None
    fresh.secret_files.update(settings.secret_files)
    return fresh


def reload_apps(settings: Settings, document: bytes) -> dict[str, AppSettings]:
    """Return every app as `document`, the present content of the apps file, describes it; the rest stays as it is.

    Raises:
        ConfigurationError: it cannot be used; a start would refuse it too.
    """
    if settings.apps_file is None:
        return settings.all_apps()
    values = {name: getattr(settings, name) for name in Settings.model_fields if name not in APPS_FILE_ONLY}
    tables, text = read_app_tables(settings.apps_file, document)
    _require_app_names(tables)
    try:
        return Settings.model_validate(_model_input(values, tables), context=RUNNING).all_apps()
    except ValidationError as error:
        raise ConfigurationError("\n".join(describe_faults(error, Sources({}, text)))) from None


def _require_app_names(tables: Mapping[str, Mapping[str, Any]]) -> None:
    misplaced = sorted(set(tables.get(DEFAULT_APP, {})) - _APPS_FILE_OF_DEFAULT)
    if misplaced:
        instead = [f"{name} by {PREFIX}{name.upper()}" if name in Settings.model_fields else name for name in misplaced]
        raise ConfigurationError(
            f"{PREFIX}APPS_FILE: the app {DEFAULT_APP!r} is described by the environment, but for its more `issuers`, "
            f"its `templates`, its `tiers` and its `sources`. Not here: {', '.join(instead)}"
        )
    if not all(re.fullmatch(NAME, name) for name in tables):
        raise ConfigurationError(f"{PREFIX}APPS_FILE: an app's name is 1 to 64 of A-Z a-z 0-9 _ . -")


def _model_input(values: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    others = {name: table for name, table in tables.items() if name != DEFAULT_APP}
    return {**values, **tables.get(DEFAULT_APP, {}), "apps": others}


def _without_files(values: Mapping[str, Any], sources: Sources, faults: list[str]) -> LoadedSettings:
    """Return the settings as if each file were there; missing ones hide from pydantic what does not go together."""
    try:
        settings = Settings.model_validate(values, context=RUNNING)
    except ValidationError as error:
        more = describe_faults(error, sources)
        return LoadedSettings(None, [*faults, *(fault for fault in more if fault not in faults)])
    return LoadedSettings(settings, faults)
