"""Wires authentication from the settings: issuers and their keys, tokens and certificates of services and admins."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from syncbeat_server.app.tenants.issuer_keys import IssuerKeys
from syncbeat_server.app.token_issuers import ConfiguredIssuer, configured_issuers, issuer_of, log_unused_keys
from syncbeat_server.auth.accounts.caller_caches import CallerCaches, caller_caches
from syncbeat_server.auth.model import Issuer, KeyRow, Principal, PrincipalKind
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshKeys
from syncbeat_server.auth.sessions.rotation_and_reuse import SessionRule
from syncbeat_server.auth.sessions.signing import SigningKeys
from syncbeat_server.auth.tokens.jwks import JwksStore
from syncbeat_server.auth.tokens.keys import key_table, parse_signing_keys
from syncbeat_server.clock import Clock
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.app import AppSettings, session_issuer
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.ops.settings.types import CertificateEntry, TokenEntry
from syncbeat_server.storage.postgres.database import Database


@dataclass(frozen=True)
class Authentication:
    """Authenticator of a process, its caches, the keys that it fetches from issuers, and what it was made of."""

    authenticator: Authenticator
    caches: CallerCaches
    keys: IssuerKeys
    issuers: Mapping[str, list[ConfiguredIssuer]]
    credentials: Credentials


def build_authentication(
    settings: Settings, apps: Mapping[str, AppSettings], database: Database, clock: Clock, negative_cache_s: float
) -> Authentication:
    """Create the authentication of one process for these apps. Raises as `configured_credentials`."""
    issuers, keys = {name: configured_issuers(name, app) for name, app in apps.items()}, IssuerKeys(clock)
    keys.use(keys.stores_of(one for each in issuers.values() for one in each))
    credentials = credentials_of(settings, apps, issuers, keys.current)
    log_unused_keys(one for each in issuers.values() for one in each)
    size = settings.token_cache_size or settings.cached_devices
    caches = caller_caches(database, clock, size, negative_cache_s)
    return Authentication(Authenticator(credentials, caches, clock), caches, keys, issuers, credentials)


def configured_credentials(settings: Settings, clock: Clock) -> Credentials:
    """Return the credentials that the settings accept. A start and `check-config` refuse the same settings.

    Raises:
        ConfigurationError: a key, an issuer's settings, or an allow-list cannot be used.
    """
    apps = settings.all_apps()
    issuers = {name: configured_issuers(name, app) for name, app in apps.items()}
    jwks = IssuerKeys(clock).stores_of(one for each in issuers.values() for one in each)
    return credentials_of(settings, apps, issuers, jwks)


def credentials_of(
    settings: Settings,
    apps: Mapping[str, AppSettings],
    issuers: Mapping[str, Sequence[ConfiguredIssuer]],
    jwks: Mapping[str, JwksStore],
) -> Credentials:
    """Return the credentials that are accepted for these apps, with the stores of published keys by issuer.

    Raises:
        ConfigurationError: as `configured_credentials`.
    """
    rows = [row for each in issuers.values() for one in each for row in one.rows]
    rows += [row for name, app in apps.items() for row in _public(session_rows(settings, name, app))]
    try:
        keys = key_table(rows)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_JWT_SECRETS: {error}") from None
    allowed = require_allow_lists(settings, apps)
    holders = {bytes.fromhex(entry.digest): holder for entry, holder in _holders(settings, allowed)}
    certified = {
        entry.san: _principal(entry, PrincipalKind.SERVICE, allowed) for entry in settings.service_certificates
    }
    return Credentials(keys, jwks, holders, certified, frozenset(apps))


def require_allow_lists(settings: Settings, apps: Mapping[str, AppSettings] | None = None) -> AllowedNames:
    """Return the names that allow-lists may hold. Raises ConfigurationError, a line for each other name in one."""
    allowed = AllowedNames(frozenset(settings.all_apps() if apps is None else apps), rpc_names())
    if faults := list(_allow_list_faults(settings, allowed)):
        raise ConfigurationError("\n".join(faults))
    return allowed


def session_rows(settings: Settings, name: str, app: AppSettings) -> list[KeyRow]:
    """Return the private keys of an app's own sessions, the signing key first; empty if sessions are off.

    Raises:
        ConfigurationError: they cannot be used.
    """
    if settings.session_keys is None:
        return []
    first = issuer_of(name, app)
    issuer = Issuer(
        app_id=name,
        name=session_issuer(name, app),
        uuid_subjects=first.uuid_subjects,
        leeway=first.leeway,
        own_sessions=True,
        tier_claim=app.tier_claim,
    )
    try:
        return parse_signing_keys(settings.session_keys.get_secret_value(), issuer)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_SESSION_KEYS: {error}") from None


def signing_keys(settings: Settings, apps: Mapping[str, AppSettings]) -> SigningKeys | None:
    """Return the keys that sign the tokens of these apps' sessions; None if sessions are off."""
    if settings.session_keys is None:
        return None
    secrets = {kid: secret.get_secret_value().encode() for kid, secret in settings.session_secrets.items()}
    signers = {name: session_rows(settings, name, app)[0] for name, app in apps.items()}
    return SigningKeys(signers, RefreshKeys(secrets))


def session_rule(settings: Settings) -> SessionRule:
    """Return the lifetimes of our own sessions and their tokens."""
    return SessionRule(
        access_s=settings.access_token_s,
        idle_s=settings.session_idle_s,
        max_s=settings.session_max_s,
        grace_s=settings.session_grace_s,
    )


def _public(rows: Iterable[KeyRow]) -> list[KeyRow]:
    return [KeyRow(row.issuer, row.kid, row.algorithm, row.key.public_key()) for row in rows]


@dataclass(frozen=True)
class AllowedNames:
    """Names that an allow-list may hold."""

    apps: frozenset[str]
    methods: frozenset[str]


def rpc_names() -> frozenset[str]:
    """Return the names of all RPCs."""
    # gRPC and protobuf are loaded only by processes that serve RPCs.
    from syncbeat_server.rpc.server import CONTRACT

    return frozenset(method.name for service in CONTRACT for method in service.methods)


def _holders(settings: Settings, allowed: AllowedNames) -> Iterable[tuple[TokenEntry, Principal]]:
    lists: Mapping[PrincipalKind, tuple[TokenEntry, ...]] = {
        PrincipalKind.SERVICE: settings.service_tokens,
        PrincipalKind.ADMIN: settings.admin_tokens,
    }
    return ((entry, _principal(entry, kind, allowed)) for kind, entries in lists.items() for entry in entries)


def _allow_list_faults(settings: Settings, allowed: AllowedNames) -> Iterator[str]:
    lists: Mapping[str, Sequence[TokenEntry | CertificateEntry]] = {
        "SERVICE_TOKENS": settings.service_tokens,
        "ADMIN_TOKENS": settings.admin_tokens,
        "SERVICE_CERTIFICATES": settings.service_certificates,
    }
    for setting, entries in lists.items():
        for entry in entries:
            place = f"SYNCBEAT_{setting}: {entry.name}"
            for app in sorted((entry.apps or frozenset()) - allowed.apps):
                yield f"{place} is for app {app!r}, which is not configured"
            for fault in method_faults(entry.methods or frozenset(), allowed.methods):
                yield f"{place} may call {fault}"


def method_faults(named: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """Yield the fault of each name that is no RPC, with what may have been meant."""
    for method in sorted(set(named) - set(known)):
        close = get_close_matches(method, known, n=1)
        instead = f"did you mean {close[0]}?" if close else "want names such as GetHint, or *"
        yield f"{method!r}, which is no RPC: {instead}"


def _principal(entry: TokenEntry | CertificateEntry, kind: PrincipalKind, allowed: AllowedNames) -> Principal:
    return Principal(kind, entry.name, methods=entry.methods, apps=allowed.apps if entry.apps is None else entry.apps)
