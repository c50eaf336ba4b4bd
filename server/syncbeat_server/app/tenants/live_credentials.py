"""Lets the credentials of a process follow the apps file and the files of secrets: issuers, keys, services' tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from syncbeat_server.app.app_configuration import AppConfiguration
from syncbeat_server.app.authentication import Authentication, credentials_of
from syncbeat_server.app.tenants.secret_files import SecretFiles
from syncbeat_server.app.token_issuers import ConfiguredIssuer, configured_issuers, log_unused_keys
from syncbeat_server.auth.service import Credentials
from syncbeat_server.ops.settings.app import AppSettings, session_issuer

_log = logging.getLogger(__name__)


class LiveCredentials:
    """Adopts what the apps file says of issuers and keys, and ends what was let in by what it says no more."""

    def __init__(
        self,
        secrets: SecretFiles,
        apps: AppConfiguration,
        authentication: Authentication,
        callers_changed: Callable[[str, str | None], None],
    ) -> None:
        """`callers_changed(app, None)` makes all streams of an app check their caller again."""
        self._secrets = secrets
        self._settings = secrets.current
        self._apps = apps
        self._authentication = authentication
        self._callers_changed = callers_changed
        self._before = apps.current
        self._issuers = authentication.issuers
        self._credentials = authentication.credentials
        apps.on_change(self._adopt)
        secrets.on_change(self._adopt)

    def _adopt(self) -> None:
        """Go by apps and secrets as they are now. Raises ConfigurationError, and changes nothing, as a start would."""
        apps, before, settings = self._apps.current, self._before, self._secrets.current
        changed = {name for name in apps.keys() | before.keys() if apps.get(name) != before.get(name)}
        if not changed and settings is self._settings:
            return
        # Keys are read again only of apps that the file describes anew: there may be a thousand others.
        issuers = {
            name: self._issuers[name] if name not in changed else configured_issuers(name, apps[name]) for name in apps
        }
        keys = self._authentication.keys
        stores = keys.stores_of(one for each in issuers.values() for one in each)
        made = credentials_of(settings, apps, issuers, stores)
        outdated = {name for name in changed if self._accepts(name, before) != self._accepts_now(name, apps, issuers)}
        if settings.session_keys != self._settings.session_keys:
            outdated |= set(apps)
        gone, self._credentials = _gone(self._credentials, made), made
        self._before, self._issuers, self._settings = apps, issuers, settings
        self._authentication.authenticator.adopt(made)
        keys.use(stores)
        for name in outdated:
            self._authentication.caches.invalidate_app(name)
        for name in gone:
            self._callers_changed(name, None)
        log_unused_keys(one for name in changed & apps.keys() for one in issuers[name])
        if outdated:
            _log.info("the keys of apps were read anew", extra={"apps": sorted(outdated)})

    def _accepts(self, name: str, before: Mapping[str, AppSettings]) -> object:
        return self._accepts_now(name, before, self._issuers)

    def _accepts_now(
        self, name: str, apps: Mapping[str, AppSettings], issuers: Mapping[str, list[ConfiguredIssuer]]
    ) -> object:
        """Return what decides which tokens of an app are accepted."""
        app = apps.get(name)
        return None if app is None else (issuers[name], session_issuer(name, app), app.tier_claim)


def _gone(before: Credentials, now: Credentials) -> set[str]:
    """Return the apps that are not configured any more, or have lost an issuer."""
    issuers = before.app_of_issuer.items() - now.app_of_issuer.items()
    return {app_id for _, app_id in issuers} | ((before.apps or frozenset()) - (now.apps or frozenset()))
