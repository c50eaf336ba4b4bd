"""Combines the settings of issuers with the presets of known kinds of issuers, and reads their keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta

from syncbeat_server.auth.model import OPTIONAL_CLAIMS, Issuer, KeyRow
from syncbeat_server.auth.tokens.issuer_presets import ISSUER_PRESETS, IssuerPreset
from syncbeat_server.auth.tokens.keys import SYMMETRIC, parse_jwks, with_kidless_row
from syncbeat_server.defaults import UnlinkedSubjects
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.files import read_file
from syncbeat_server.ops.settings.app import AppSettings
from syncbeat_server.ops.settings.issuer import DEFAULT_ISSUER, IssuerSettings, SubjectFormat, UnknownUsers
from syncbeat_server.ops.settings.types import check_base_url

_log = logging.getLogger(__name__)

_ANY_CLIENT = "*"


@dataclass(frozen=True)
class ConfiguredIssuer:
    """Issuer with the keys in the settings, and the URL at which it publishes others.

    Attributes:
        jwks_url: The URL of its published keys; empty if it has none.
        unused: The faults of those keys of its file that are not used.
    """

    issuer: Issuer
    rows: tuple[KeyRow, ...]
    jwks_url: str
    unused: tuple[str, ...]


def configured_issuers(app_id: str, app: AppSettings) -> list[ConfiguredIssuer]:
    """Return the issuers of an app's tokens, the first one first.

    Raises:
        ConfigurationError: a setting does not go with the kind of issuer, or a key cannot be used.
    """
    return [configured_issuer(app_id, given, app.tier_claim) for given in (app, *app.issuers)]


def key_rows(app_id: str, app: AppSettings) -> list[KeyRow]:
    """Return the keys in the settings that sign the tokens of an app's users. Raises as `configured_issuers`."""
    return [row for one in configured_issuers(app_id, app) for row in one.rows]


def log_unused_keys(issuers: Iterable[ConfiguredIssuer]) -> None:
    """Log the keys of files that are not used."""
    for one in issuers:
        for fault in one.unused:
            _log.warning("a key of an issuer is not used", extra={"issuer": one.issuer.name, "fault": fault})


def configured_issuer(app_id: str, given: IssuerSettings, tier_claim: str = "") -> ConfiguredIssuer:
    """Return one issuer of an app's tokens. Raises as `configured_issuers`."""
    issuer = replace(issuer_of(app_id, given), tier_claim=tier_claim)
    jwks_url = given.jwks_url or _usual_keys(given, ISSUER_PRESETS[given.jwt_profile])
    rows, unused = _rows(given, issuer, jwks_url)
    return ConfiguredIssuer(issuer, tuple(rows), jwks_url, tuple(unused))


def issuer_of(app_id: str, given: IssuerSettings) -> Issuer:
    """Return the rules for an issuer's tokens. Raises ConfigurationError when a setting does not go with its kind."""
    profile = ISSUER_PRESETS.get(given.jwt_profile)
    if profile is None:
        raise ConfigurationError(f"SYNCBEAT_JWT_PROFILE: want one of {', '.join(filter(None, sorted(ISSUER_PRESETS)))}")
    may_lack = OPTIONAL_CLAIMS | {"azp"}
    if not given.jwt_optional <= may_lack:
        raise ConfigurationError(f"SYNCBEAT_JWT_OPTIONAL: want some of {', '.join(sorted(may_lack))}")
    if given.jwt_profile and given.jwt_issuer == DEFAULT_ISSUER:
        raise ConfigurationError(f"SYNCBEAT_JWT_ISSUER: set it to what tokens of {given.jwt_profile} have as `iss`")
    set_here = {"JWT_AUDIENCE": given.jwt_audience, "JWT_CLIENTS": given.jwt_clients}
    if profile.needs_one_of and not any(set_here[name] for name in profile.needs_one_of):
        either = " or ".join(f"SYNCBEAT_{name}" for name in profile.needs_one_of)
        raise ConfigurationError(f"{either}: set it, or the tokens of every app of this {given.jwt_profile} are let in")
    # If audiences are set, a token must have one, also of a kind of issuer whose tokens usually have none.
    required = profile.required | ({"aud"} if given.jwt_audience else set())
    return Issuer(
        app_id=app_id,
        name=given.jwt_issuer,
        audiences=given.jwt_audience or _usual_audiences(given, profile),
        required=required - given.jwt_optional,
        roles=given.jwt_roles or profile.roles,
        uuid_subjects=profile.uuid_subjects if given.jwt_subjects is None else given.jwt_subjects is SubjectFormat.UUID,
        leeway=timedelta(seconds=given.jwt_leeway_s),
        accept_unknown_users=given.unknown_users is UnknownUsers.ACCEPT,
        clients=given.jwt_clients if given.jwt_clients != {_ANY_CLIENT} else frozenset(),
        client_optional=profile.client_optional or "azp" in given.jwt_optional,
        types=profile.types,
        rules=profile.rules,
        accept_id_tokens=profile.accept_id_tokens,
        user_id_claim=given.user_id_claim,
        unlinked=given.unlinked_subjects or _usual_unlinked(given),
        email_joins=given.email_joins,
    )


def _usual_unlinked(given: IssuerSettings) -> UnlinkedSubjects:
    # The first issuer of an app stands in the app's own settings; users who came before identities were kept are its.
    return UnlinkedSubjects.OWN if isinstance(given, AppSettings) else UnlinkedSubjects.NEW


def _usual_audiences(given: IssuerSettings, profile: IssuerPreset) -> tuple[str, ...]:
    if not profile.project_audience:
        return profile.audiences
    project = given.jwt_issuer.rpartition("/")[2]
    if not project:
        raise ConfigurationError("SYNCBEAT_JWT_ISSUER: want one that ends in the project, or set SYNCBEAT_JWT_AUDIENCE")
    return (project,)


def _usual_keys(given: IssuerSettings, profile: IssuerPreset) -> str:
    if not profile.keys or given.jwt_secrets or given.jwks_file is not None:
        return ""
    url = profile.keys if profile.keys.startswith("https:") else given.jwt_issuer.rstrip("/") + profile.keys
    try:
        check_base_url("JWT_ISSUER", url)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_{error}, or SYNCBEAT_JWKS_URL beside it") from None
    return url


def _rows(given: IssuerSettings, issuer: Issuer, jwks_url: str) -> tuple[list[KeyRow], list[str]]:
    secrets = [KeyRow(issuer, kid, SYMMETRIC, secret.get_secret_value()) for kid, secret in given.jwt_secrets.items()]
    if given.jwks_file is None:
        return with_kidless_row(secrets), []
    try:
        published, unused = parse_jwks(read_file(given.jwks_file), issuer)
    except ValueError as error:
        raise ConfigurationError(f"SYNCBEAT_JWKS_FILE: {error}") from None
    if not published:
        why = ", ".join(unused) or "it holds none"
        raise ConfigurationError(f"SYNCBEAT_JWKS_FILE: {why}: no key of it can be used")
    twice = sorted({row.kid for row in published} & given.jwt_secrets.keys())
    if twice:
        raise ConfigurationError(f"SYNCBEAT_JWKS_FILE: its kid {twice[0]!r} is also one of SYNCBEAT_JWT_SECRETS")
    # With keys published elsewhere too, a single key in the file need not be the only one.
    return with_kidless_row(secrets) + (published if jwks_url else with_kidless_row(published)), unused
