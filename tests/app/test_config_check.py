"""check-config and a start refuse the same settings, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncbeat_server.app import find_config_faults, find_config_notes
from syncbeat_server.cli.main import _first
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.load import load_settings, load_with_faults
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.ops.settings.types import token_digest
from tests.support.certificates import Authority
from tests.support.databases import DatabaseUrls
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import SECRET, running_server

pytestmark = pytest.mark.rpc

DIGEST = token_digest("a token")
CA = Authority("servers")
GOOD = {"JWT_SECRETS": f"k1={SECRET}"}
TLS = {"TLS_CERTIFICATE": "server.pem", "TLS_KEY": "server.key"}
MUTUAL = {**TLS, "MTLS_LISTEN": "127.0.0.1:0", "SERVICE_CERTIFICATES": "b:*:*:b.example", "MTLS_CLIENT_CA": "ca.pem"}


def written(folder: Path, settings: dict[str, str]) -> dict[str, str]:
    """Write the files that settings may name, and return the settings with their paths."""
    CA.sign("localhost").write(folder, "server")
    CA.sign("localhost").write(folder, "other")
    (folder / "ca.pem").write_bytes(CA.certificate)
    (folder / "text.pem").write_text("no certificate\n")
    return {name: str(folder / text) if text.endswith((".pem", ".key")) else text for name, text in settings.items()}


REFUSED = {
    "no pair": ({**TLS, "TLS_KEY": "other.key"}, "TLS_KEY, MTLS_CLIENT_CA: the key is not that of the certificate"),
    "no certificate": ({**TLS, "TLS_CERTIFICATE": "text.pem"}, "the certificate is no PEM file"),
    "no key": ({**TLS, "TLS_KEY": "text.pem"}, "the key is no PEM file, or has a password"),
    "no authority": ({**MUTUAL, "MTLS_CLIENT_CA": "text.pem"}, "the clients' authorities are no PEM file"),
    "no such method": (
        {"SERVICE_TOKENS": f"a:{DIGEST}:GetHynt|SendNotification:*"},
        "SYNCBEAT_SERVICE_TOKENS: a may call 'GetHynt', which is no RPC: did you mean GetHint?",
    ),
    "no such method by certificate": (
        {**MUTUAL, "SERVICE_CERTIFICATES": "b:Nothing:*:b.example"},
        "SYNCBEAT_SERVICE_CERTIFICATES: b may call 'Nothing', which is no RPC: want names such as GetHint",
    ),
    "no such app": (
        {"ADMIN_TOKENS": f"a:{DIGEST}:*:shop"},
        "SYNCBEAT_ADMIN_TOKENS: a is for app 'shop', which is not configured",
    ),
    "no service account": (
        {"FCM_CREDENTIALS": "text.pem"},
        "SYNCBEAT_FCM_CREDENTIALS: not the JSON of a service account",
    ),
    "no key set": ({"JWKS_FILE": "text.pem"}, "SYNCBEAT_JWKS_FILE: not a JWKS document"),
    "no session key": ({"SESSION_KEYS": "{}", "SESSION_SECRETS": f"k={SECRET}"}, "SYNCBEAT_SESSION_KEYS: not a JWKS"),
}


@pytest.mark.parametrize(("settings", "told"), REFUSED.values(), ids=REFUSED)
async def test_check_config_finds_what_a_start_refuses(
    settings: dict[str, str], told: str, database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    given = written(tmp_path, {**GOOD, **settings})
    loaded = load_settings({f"SYNCBEAT_{name}": text for name, text in given.items()}, env_file=None)
    (fault,) = await find_config_faults(loaded, Role.ALL)
    assert told in fault
    with pytest.raises((ConfigurationError, ExceptionGroup)) as refused:
        async with running_server(
            database_urls, redis_url, Role.ALL, PATIENT, **{"SERVICE_TOKENS": "", "ADMIN_TOKENS": "", **given}
        ):
            pass
    assert str(_first(refused.value)) == fault


async def test_check_config_finds_all_faults_at_once(tmp_path: Path) -> None:
    tokens = f"a:{DIGEST}:GetHynt:shop,b:{token_digest('b')}:Send:*"
    given = written(
        tmp_path, {**TLS, "TLS_KEY": "other.key", "SERVICE_TOKENS": tokens, "WORKERS": "2", "LISTEN": "h:0"}
    )
    loaded = load_settings({f"SYNCBEAT_{name}": text for name, text in given.items()}, env_file=None)
    faults = await find_config_faults(loaded, Role.ALL)
    assert [fault.partition(":")[0] for fault in faults] == [
        "SYNCBEAT_WORKERS",
        "SYNCBEAT_SERVICE_TOKENS",
        "SYNCBEAT_SERVICE_TOKENS",
        "SYNCBEAT_SERVICE_TOKENS",
        "SYNCBEAT_TLS_CERTIFICATE, TLS_KEY, MTLS_CLIENT_CA",
    ]
    (note,) = find_config_notes(loaded)
    assert "no JWT_SECRETS, JWKS_FILE, JWKS_URL or SESSION_KEYS, so no user can call" in note


async def test_check_config_goes_on_after_missing_files(tmp_path: Path) -> None:
    given = {
        **{name: str(tmp_path / name) for name in ("JWKS_FILE", "TLS_CERTIFICATE", "TLS_KEY", "FCM_CREDENTIALS")},
        "SERVICE_TOKENS": f"a:{DIGEST}:GetHynt:*",
        "JWT_PROFILE": "oktta",
        "REDIS_URL": "redis://127.0.0.1:1",
    }
    settings, faults = load_with_faults({f"SYNCBEAT_{name}": text for name, text in given.items()}, env_file=None)
    assert settings is not None
    assert len(faults) == 4
    more = await find_config_faults(settings, Role.ALL, faults)
    assert [fault.partition(":")[0] for fault in more] == [
        "SYNCBEAT_DATABASE_URL and SYNCBEAT_REDIS_URL",
        "SYNCBEAT_JWT_PROFILE",
        "SYNCBEAT_SERVICE_TOKENS",
    ]


async def test_check_config_and_a_start_take_services_alone(database_urls: DatabaseUrls, redis_url: str) -> None:
    given = {"SERVICE_TOKENS": f"a:{DIGEST}:*:*", "ADMIN_TOKENS": "", "JWT_SECRETS": "", "SESSION_KEYS": ""}
    loaded = load_settings({f"SYNCBEAT_{name}": text for name, text in given.items()}, env_file=None)
    assert await find_config_faults(loaded, Role.ALL) == []
    async with running_server(database_urls, redis_url, Role.ALL, PATIENT, SESSION_SECRETS="", **given):
        pass


@pytest.mark.parametrize(("role", "refused"), [(Role.ALL, True), (Role.RPC, True), (Role.WORKER, False)])
async def test_check_config_refuses_a_server_that_nobody_can_call(role: Role, refused: bool) -> None:
    loaded = load_settings({}, env_file=None)
    assert bool(await find_config_faults(loaded, role)) == refused


async def test_check_config_of_good_settings_finds_nothing(tmp_path: Path) -> None:
    given = written(tmp_path, {**GOOD, **MUTUAL})
    loaded = load_settings({f"SYNCBEAT_{name}": text for name, text in given.items()}, env_file=None)
    assert await find_config_faults(loaded, Role.ALL) == []
