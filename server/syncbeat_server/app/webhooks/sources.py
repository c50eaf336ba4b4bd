"""Keeps each app's sources of webhooks as the apps file, the secrets' files and the environment describe them now."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from syncbeat_server.app.app_configuration import AppConfiguration, CredentialsFile
from syncbeat_server.app.authentication import method_faults, rpc_names
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.http.webhooks.expressions import Expression, ExpressionFault
from syncbeat_server.http.webhooks.mapping import PayloadMapping
from syncbeat_server.http.webhooks.model import Source
from syncbeat_server.http.webhooks.schemes import parse_key
from syncbeat_server.ops.files import loggable_path
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.event_sources import SourceSettings

EFFECT_METHODS = frozenset(
    {
        "AddScopeMembers",
        "DeleteUser",
        "DisableUser",
        "EnableUser",
        "PublishChanges",
        "RemoveScopeMembers",
        "SendNotification",
        "SetUserTier",
    }
)
"""The RPCs that effects stand for."""
_listed = ", ".join(sorted(EFFECT_METHODS))

ReadFile = Callable[[Path], CredentialsFile]


class WebhookSources:
    """Present sources of all apps."""

    def __init__(self, apps: AppConfiguration, keep_events_days: float) -> None:
        """Raises ConfigurationError: a source cannot be used."""
        self._apps = apps
        self._keep_events_days = keep_events_days
        self.current: Mapping[tuple[str, str], Source] = {}
        self._make()
        apps.on_change(self._make)

    def _make(self) -> None:
        self.current = make_sources(self._apps.current, self._apps.read_credentials, self._keep_events_days)


def make_sources(
    apps: Mapping[str, AppSettings], read: ReadFile, keep_events_days: float
) -> dict[tuple[str, str], Source]:
    """Return all sources by app and name, where events are known for so many days.

    Raises:
        ConfigurationError: some cannot be used; a line for each fault.
    """
    made, faults = {}, []
    for app_id, app in apps.items():
        for name, given in app.sources.items():
            try:
                require_receipts(app_id, name, given, keep_events_days)
                made[app_id, name] = make_source(app_id, name, given, read)
            except ConfigurationError as error:
                faults.append(error.message)
    if faults:
        raise ConfigurationError("\n".join(faults))
    return made


def require_receipts(app_id: str, name: str, given: SourceSettings, keep_events_days: float) -> None:
    """Raise ConfigurationError unless an event of a source is on record for as long as it may come again."""
    if given.repeats_s > keep_events_days * 86_400.0:
        raise ConfigurationError(
            f"{place_of(app_id, name)}: an event can come again for {given.repeats_s:.0f} s, and is a new one after "
            f"{keep_events_days:g} days: want SYNCBEAT_KEEP_EVENTS_DAYS higher, or max_age_s lower"
        )


def make_source(app_id: str, name: str, given: SourceSettings, read: ReadFile | None) -> Source:
    """Return a source; without `read` one without secrets, whose payloads are tried. Raises ConfigurationError."""
    place = place_of(app_id, name)
    for fault in method_faults(given.allow, rpc_names()):
        raise ConfigurationError(f"{place}.allow has {fault}")
    if idle := sorted(given.allow - EFFECT_METHODS):
        raise ConfigurationError(f"{place}.allow: no effect stands for {', '.join(idle)}: want {_listed}")
    return Source(
        app_id=app_id,
        name=name,
        scheme=given.scheme,
        keys=() if read is None else tuple(_keys(place, given, read)),
        tolerance_s=given.tolerance_s,
        mapping=make_mapping(place, given),
        methods=given.allow,
    )


def make_mapping(place: str, given: SourceSettings) -> PayloadMapping:
    """Return the mapping of a source. Raises ConfigurationError: an expression cannot be used."""

    def compiled(setting: str, text: str) -> Expression:
        try:
            return Expression(text)
        except ExpressionFault as fault:
            raise ConfigurationError(f"{place}.{setting}: {fault}") from None

    def optional(setting: str, text: str) -> Expression | None:
        return compiled(setting, text) if text else None

    return PayloadMapping(
        event_id=compiled("id", given.id_expression),
        type=compiled("type", given.type),
        subject=optional("subject", given.subject),
        ordering_key=optional("ordering_key", given.ordering_key),
        occurred=optional("occurred", given.occurred),
        occurred_as=given.occurred_as,
        keep_payload=given.keep_payload,
        max_age_s=given.oldest_s,
        effects={kind: compiled(f"effects.{kind[:64]}", text) for kind, text in given.effects.items()},
    )


def place_of(app_id: str, name: str) -> str:
    """Return how messages name the table of a source."""
    return f"SYNCBEAT_APPS_FILE: apps.{app_id}.sources.{name}"


def _keys(place: str, given: SourceSettings, read: ReadFile) -> list[bytes]:
    texts = [("secrets", secret.get_secret_value()) for secret in given.secrets]
    texts += [("secret_files", _file_text(place, path, read)) for path in given.secret_files if path is not None]
    variables = {name: os.environ.get(name, "").strip() for name in given.secret_variables}
    texts += [(f"secret_variables: {name}", text) for name, text in variables.items() if text]
    keys = []
    for setting, text in texts:
        try:
            keys.append(parse_key(given.scheme, text))
        except ValueError as error:
            raise ConfigurationError(f"{place}.{setting}: {error}") from None
    if not keys:
        raise ConfigurationError(f"{place}.secret_variables: none of them is set")
    return keys


def _file_text(place: str, path: Path, read: ReadFile) -> str:
    held = read(path).held
    if isinstance(held, str):
        raise ConfigurationError(f"{place}.secret_files: cannot read it: {held}")
    try:
        return held.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{place}.secret_files: {loggable_path(path)} is not text in UTF-8") from None
