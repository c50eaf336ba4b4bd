"""Who may call: issuers and their keys, tokens and certificates, from the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from syncbeat_server.auth.jwks import JwksStore
from syncbeat_server.auth.keys import key_table, keys_of_jwks, signing_keys
from syncbeat_server.auth.model import OPTIONAL_CLAIMS, Issuer, KeyRow, Principal, PrincipalKind
from syncbeat_server.auth.policy import SessionRule
from syncbeat_server.auth.service import Authenticator, Known
from syncbeat_server.auth.standings import Standings
from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.config import (
    AppSettings,
    IssuerSettings,
    Settings,
    Subjects,
    UnknownUsers,
    session_issuer,
)
from syncbeat_server.ops.files import read_file
from syncbeat_server.ops.setting_types import CertificateEntry, TokenEntry
from syncbeat_server.storage.postgres import Database


@dataclass(frozen=True)
class Callers:
    """What checks who calls, and the keys that are fetched meanwhile."""

    door: Authenticator
    jwks: tuple[JwksStore, ...]

    async def close(self) -> None:
        """End the connections to issuers."""
        for store in self.jwks:
            await store.close()


def callers(settings: Settings, database: Database, clock: Clock) -> Callers:
    """The door of one process.

    Raises:
        ConfigurationError: a key or an allow-list cannot be used.
    """
    apps = settings.all_apps()
    rows = [row for name, app in apps.items() for row in key_rows(name, app)]
    rows += [row for name, app in apps.items() for row in _public(session_rows(settings, name, app))]
    jwks = {
        issuer.name: JwksStore(given.jwks_url, issuer, clock)
        for name, app in apps.items()
        for given, issuer in _issuers(name, app)
        if given.jwks_url
    }
    holders = {bytes.fromhex(entry.digest): holder for entry, holder in _holders(settings)}
    certified = {
        entry.san: _principal(entry, PrincipalKind.SERVICE, "CERTIFICATES", frozenset(apps))
        for entry in settings.service_certificates
    }
    known = Known(key_table(rows), jwks, holders, certified)
    standings = Standings(database, clock, settings.token_cache_size)
    return Callers(Authenticator(known, standings, clock, settings.token_cache_size), tuple(jwks.values()))


def key_rows(name: str, app: AppSettings) -> list[KeyRow]:
    """The keys in the settings that sign the access tokens of one app's users.

    Raises:
        ConfigurationError: a JWKS file cannot be used.
    """
    return [row for given, issuer in _issuers(name, app) for row in _issuer_rows(given, issuer)]


def session_rows(settings: Settings, name: str, app: AppSettings) -> list[KeyRow]:
    """The private keys of an app's own sessions, the one that signs first; none when there are none.

    Raises:
        ConfigurationError: they cannot be used.
    """
    if settings.session_keys is None:
        return []
    issuer = Issuer(
        app_id=name,
        name=session_issuer(name, app),
        uuid_subjects=app.jwt_subjects is Subjects.UUID,
        leeway=timedelta(seconds=app.jwt_leeway_s),
        own=True,
    )
    try:
        return signing_keys(settings.session_keys.get_secret_value(), issuer)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_SESSION_KEYS: {error}") from None


def session_rule(settings: Settings) -> SessionRule:
    """How long our own sessions and their tokens live."""
    return SessionRule(
        access_s=settings.access_token_s,
        idle_s=settings.session_idle_s,
        max_s=settings.session_max_s,
        grace_s=settings.session_grace_s,
    )


def _issuers(name: str, app: AppSettings) -> Iterable[tuple[IssuerSettings, Issuer]]:
    return ((given, _issuer(name, given)) for given in (app, *app.issuers))


def _issuer(name: str, given: IssuerSettings) -> Issuer:
    if not given.jwt_optional <= OPTIONAL_CLAIMS:
        raise ConfigurationError(f"SYNCBEAT_JWT_OPTIONAL: want some of {', '.join(sorted(OPTIONAL_CLAIMS))}")
    return Issuer(
        app_id=name,
        name=given.jwt_issuer,
        audience=given.jwt_audience,
        required=OPTIONAL_CLAIMS - given.jwt_optional,
        roles=given.jwt_roles,
        uuid_subjects=given.jwt_subjects is Subjects.UUID,
        leeway=timedelta(seconds=given.jwt_leeway_s),
        first_sight=given.unknown_users is UnknownUsers.ACCEPT,
    )


def _issuer_rows(given: IssuerSettings, issuer: Issuer) -> list[KeyRow]:
    rows = [KeyRow(issuer, kid, "HS256", secret.get_secret_value()) for kid, secret in given.jwt_secrets.items()]
    if len(rows) == 1:
        # A single secret also checks tokens without a kid, as Supabase's legacy secret signs them.
        rows.append(KeyRow(issuer, "", "HS256", rows[0].key))
    if given.jwks_file is not None:
        try:
            published, faults = keys_of_jwks(read_file(given.jwks_file), issuer)
        except ValueError as error:
            raise ConfigurationError(f"SYNCBEAT_JWKS_FILE: {error}") from None
        if faults:
            raise ConfigurationError(f"SYNCBEAT_JWKS_FILE: {faults[0]}")
        rows += published
    return rows


def _public(rows: Iterable[KeyRow]) -> list[KeyRow]:
    return [KeyRow(row.issuer, row.kid, row.algorithm, row.key.public_key()) for row in rows]


def _holders(settings: Settings) -> Iterable[tuple[TokenEntry, Principal]]:
    apps = frozenset(settings.all_apps())
    lists: Mapping[PrincipalKind, tuple[TokenEntry, ...]] = {
        PrincipalKind.SERVICE: settings.service_tokens,
        PrincipalKind.ADMIN: settings.admin_tokens,
    }
    return ((entry, _principal(entry, kind, "TOKENS", apps)) for kind, entries in lists.items() for entry in entries)


def _principal(
    entry: TokenEntry | CertificateEntry, kind: PrincipalKind, setting: str, apps: frozenset[str]
) -> Principal:
    unknown = sorted((entry.apps or frozenset()) - apps)
    if unknown:
        raise ConfigurationError(
            f"SYNCBEAT_{kind.name}_{setting}: {entry.name} is for app {unknown[0]!r}, which is not configured"
        )
    return Principal(kind, entry.name, methods=entry.methods, apps=apps if entry.apps is None else entry.apps)
