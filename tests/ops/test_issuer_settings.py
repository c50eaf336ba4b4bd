"""Settings of issuers and of allow-lists: what cannot be right stops a start, and `check-config` says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from syncbeat_server.app import find_config_faults, find_config_notes
from syncbeat_server.app.authentication import configured_credentials
from syncbeat_server.auth.service import Credentials
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.ops.settings.types import token_digest
from tests.support.fake_clock import FakeClock

pytestmark = pytest.mark.unit

SECRET = "0123456789abcdef0123456789abcdef"
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]


def entry(kid: str, key: int = 0, **changes: Any) -> dict[str, Any]:
    public = jwt.algorithms.ECAlgorithm.to_jwk(KEYS[key].public_key(), as_dict=True)
    public.pop("key_ops", None)
    return {**public, "kid": kid, "alg": "ES256", "use": "sig", **changes}


def jwks_file(folder: Path, *entries: Any) -> str:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": entries}))
    return str(path)


async def refused(**variables: str) -> str:
    """Return the objection of a start to these settings, which `check-config` has too."""
    settings = load_settings({f"SYNCBEAT_{name}": value for name, value in variables.items()}, None)
    with pytest.raises(ConfigurationError) as raised:
        configured_credentials(settings, FakeClock())
    assert raised.value.message in await find_config_faults(settings, Role.ALL)
    return raised.value.message


async def accepted(**variables: str) -> Credentials:
    settings = load_settings({f"SYNCBEAT_{name}": value for name, value in variables.items()}, None)
    assert await find_config_faults(settings, Role.ALL) == []
    return configured_credentials(settings, FakeClock())


def service(methods: str = "*", apps: str = "*") -> str:
    return f"backend:{token_digest('a token')}:{methods}:{apps}"


@pytest.mark.parametrize(
    "methods",
    ["GetHints", "gethint", "GetHint|Nothing", "SyncService/GetHint", "syncbeat.v1.SyncService.GetHint", "**"],
)
@pytest.mark.parametrize("setting", ["SERVICE_TOKENS", "ADMIN_TOKENS"])
async def test_allow_list_with_unknown_method_is_refused(setting: str, methods: str) -> None:
    message = await refused(JWT_SECRETS=f"k={SECRET}", **{setting: service(methods)})
    assert f"SYNCBEAT_{setting}: backend may call" in message
    assert repr(methods.rpartition("|")[2]) in message


@pytest.mark.parametrize("setting", ["SERVICE_TOKENS", "ADMIN_TOKENS"])
async def test_allow_list_with_unknown_app_is_refused(setting: str) -> None:
    for apps in ("shop", "default|shop", "Default"):
        assert "which is not configured" in await refused(JWT_SECRETS=f"k={SECRET}", **{setting: service("*", apps)})


async def test_allow_list_of_a_certificate_with_unknown_names_is_refused(tmp_path: Path) -> None:
    files = {name: str(tmp_path / name) for name in ("TLS_CERTIFICATE", "TLS_KEY", "MTLS_CLIENT_CA")}
    for name in files:
        (tmp_path / name).write_text("read by others")
    variables = {"JWT_SECRETS": f"k={SECRET}", "MTLS_LISTEN": "127.0.0.1:0", **files}
    for allowed, said in (("Nothing:*", "'Nothing', which is no RPC"), ("*:shop", "'shop', which is not configured")):
        message = await refused(SERVICE_CERTIFICATES=f"backend:{allowed}:backend.example", **variables)
        assert message.startswith("SYNCBEAT_SERVICE_CERTIFICATES: backend")
        assert said in message


async def test_allow_list_with_known_names_is_accepted() -> None:
    tokens = ",".join(
        [service("GetHint|PublishChanges|RedriveDeliveries|IngestEvent"), f"other:{token_digest('x')}:*:default"]
    )
    known = await accepted(JWT_SECRETS=f"k={SECRET}", SERVICE_TOKENS=tokens)
    assert len(known.tokens) == 2


async def test_kid_both_in_settings_and_file_is_refused(tmp_path: Path) -> None:
    file = jwks_file(tmp_path, entry("new"), entry("k", 1))
    message = await refused(JWT_SECRETS=f"k={SECRET},old={SECRET[::-1]}", JWKS_FILE=file)
    assert message == "SYNCBEAT_JWKS_FILE: its kid 'k' is also one of SYNCBEAT_JWT_SECRETS"
    await accepted(JWT_SECRETS=f"old={SECRET}", JWKS_FILE=file)


async def test_jwks_file_skips_unusable_keys_as_by_url(tmp_path: Path) -> None:
    others = [
        entry("for encryption", use="enc"),
        entry("for agreement", alg="ECDH-ES"),
        entry("for others", key_ops=["deriveKey"]),
        entry("off the curve", x=entry("")["y"]),
        entry("of two"),
        entry("of two", 1),
        {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "short", "n": "w" * 100, "e": "AQAB"},
    ]
    file = jwks_file(tmp_path, *others, entry("good"))
    known = await accepted(JWKS_FILE=file)
    assert {kid for _, kid, _ in known.keys} == {"", "good"}
    told = find_config_notes(load_settings({"SYNCBEAT_JWKS_FILE": file}, None))
    for kid in ("for encryption", "for agreement", "for others", "off the curve", "of two", "secret", "short"):
        assert any(repr(kid) in fault for fault in told), kid


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "it holds none"),
        ([entry("k", use="enc")], "key 'k' is not for signatures"),
        ([entry("k"), entry("k", 1)], "several different keys"),
        ([entry("k", y="AAAA")], "not on the curve"),
        ([entry("k")] * 65, "at most 64"),
        ([entry("k", more="x" * 300_000)], "at most 256 KiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_jwks_file_without_usable_keys_is_refused(tmp_path: Path, entries: list[Any], said: str) -> None:
    message = await refused(JWKS_FILE=jwks_file(tmp_path, *entries))
    assert message.startswith("SYNCBEAT_JWKS_FILE: ")
    assert said in message


async def test_jwks_file_may_stand_beside_a_url(tmp_path: Path) -> None:
    file = jwks_file(tmp_path, entry("k"))
    alone = await accepted(JWKS_FILE=file)
    assert ("syncbeat", "", "ES256") in alone.keys
    both = await accepted(JWKS_FILE=file, JWKS_URL="https://issuer.example/keys")
    assert ("syncbeat", "", "ES256") not in both.keys


async def test_optional_claims_setting_names_claims() -> None:
    assert "azp" in await refused(JWT_SECRETS=f"k={SECRET}", JWT_OPTIONAL="exp")
    await accepted(JWT_SECRETS=f"k={SECRET}", JWT_OPTIONAL="azp,iat,aud,role,session_id")


async def test_issuer_profile_is_per_issuer(tmp_path: Path) -> None:
    apps = tmp_path / "apps.toml"
    apps.write_text(
        """
        [[apps.default.issuers]]
        jwt_profile = "auth0"
        jwt_issuer = "https://tenant.eu.auth0.com/"
        jwt_audience = ["https://api.example.com", "https://old.example.com"]
        [apps.shop]
        jwt_profile = "cognito"
        jwt_issuer = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_AbCdEfGhI"
        jwt_clients = "one,two"
        """
    )
    known = await accepted(JWT_SECRETS=f"k={SECRET}", APPS_FILE=str(apps))
    auth0, cognito = known.jwks.values()
    assert auth0.issuer.audiences == ("https://api.example.com", "https://old.example.com")
    assert cognito.issuer.clients == {"one", "two"}
    assert cognito.issuer.app_id == "shop"
    (row,) = {row.issuer for row in known.keys.values()}
    assert row.audiences == ("authenticated",)
    apps.write_text('[apps.shop]\njwt_profile = "auth0"\njwt_issuer = "https://tenant.eu.auth0.com/"\n')
    assert "SYNCBEAT_JWT_AUDIENCE" in await refused(JWT_SECRETS=f"k={SECRET}", APPS_FILE=str(apps))
