"""The presets of well-known issuers let in the tokens that these make for their users, and nothing else they sign."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from syncbeat_server.app.authentication import configured_credentials
from syncbeat_server.auth.tokens.issuer_presets import ISSUER_PRESETS
from syncbeat_server.auth.tokens.keys import find_key
from syncbeat_server.auth.tokens.verify import parse_token, verify_token
from syncbeat_server.errors import ConfigurationError, TokenInvalid
from syncbeat_server.ops.settings.load import load_settings
from tests.support.fake_clock import FakeClock
from tests.support.presets import NOW, PRESETS, SECRET, Preset, table

pytestmark = pytest.mark.unit

DOCUMENT = Path(__file__).parents[2] / "docs" / "tokens.md"
BEGIN, END = "<!-- what follows is printed by tests/support/presets.py -->\n", "<!-- up to here -->\n"
each_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)


def subject_of(preset: Preset, folder: Path, changes: Any, **more: str) -> str:
    """Return the subject that the preset finds in a token with these changes."""
    file = folder / "jwks.json"
    file.write_text(preset.jwks())
    variables = {"JWT_PROFILE": preset.name, "JWKS_FILE": str(file), **preset.settings, **more}
    if preset.name == "supabase":
        variables["JWT_SECRETS"] = f"legacy={SECRET}"
    settings = load_settings({f"SYNCBEAT_{name}": value for name, value in variables.items()}, None)
    known = configured_credentials(settings, FakeClock())
    unverified = parse_token(preset.token(changes))
    header = unverified.header
    row = find_key(known.keys, unverified.issuer, header.kid, header.algorithm)
    if row is None:
        raise TokenInvalid("no such key")
    return verify_token(unverified, row, datetime.fromtimestamp(NOW, UTC)).subject


def test_preset_corpus_covers_each_preset() -> None:
    assert {preset.name for preset in PRESETS} == ISSUER_PRESETS.keys() - {""}


@pytest.mark.parametrize(
    ("preset", "what"),
    [pytest.param(preset, what, id=f"{preset.name} {what}") for preset in PRESETS for what in ("", *preset.good)],
)
def test_preset_accepts_a_user_token(preset: Preset, what: str, tmp_path: Path) -> None:
    changes = preset.good.get(what, {})
    assert subject_of(preset, tmp_path, changes) == changes.get("sub", preset.claims["sub"])


@pytest.mark.parametrize(
    ("preset", "what"),
    [pytest.param(preset, what, id=f"{preset.name} {what}") for preset in PRESETS for what in preset.refused],
)
def test_preset_refuses_other_tokens_of_the_issuer(preset: Preset, what: str, tmp_path: Path) -> None:
    with pytest.raises(TokenInvalid):
        subject_of(preset, tmp_path, preset.refused[what])


@each_preset
@pytest.mark.parametrize("other", PRESETS, ids=lambda preset: preset.name)
def test_preset_refuses_tokens_of_other_issuers(preset: Preset, other: Preset, tmp_path: Path) -> None:
    if other.name != preset.name:
        with pytest.raises(TokenInvalid):
            subject_of(preset, tmp_path, {**dict.fromkeys(preset.claims), **other.claims})


@each_preset
def test_preset_knows_the_jwks_url(preset: Preset) -> None:
    variables = {f"SYNCBEAT_{name}": value for name, value in {**preset.settings, "JWT_PROFILE": preset.name}.items()}
    known = configured_credentials(load_settings(variables, None), FakeClock())
    assert [store._url for store in known.jwks.values()] == ([preset.keys_at] if preset.keys_at else [])


@each_preset
def test_preset_asks_for_its_missing_settings(preset: Preset) -> None:
    for left_out in preset.settings:
        variables = {**preset.settings, "JWT_PROFILE": preset.name, "JWKS_URL": "https://issuer.example/keys"}
        del variables[left_out]
        if (preset.name, left_out) == ("clerk", "JWT_CLIENTS"):  # all its tokens are for us
            continue
        settings = load_settings({f"SYNCBEAT_{name}": value for name, value in variables.items()}, None)
        with pytest.raises(ConfigurationError, match=left_out):
            configured_credentials(settings, FakeClock())


def test_preset_accepts_any_client_when_told_to(tmp_path: Path) -> None:
    cognito = next(preset for preset in PRESETS if preset.name == "cognito")
    assert subject_of(cognito, tmp_path, {"client_id": "another"}, JWT_CLIENTS="*") == cognito.claims["sub"]


def test_preset_is_overridden_by_explicit_settings(tmp_path: Path) -> None:
    keycloak = next(preset for preset in PRESETS if preset.name == "keycloak")
    with pytest.raises(TokenInvalid):
        subject_of(keycloak, tmp_path, {}, JWT_AUDIENCE="our-api")
    with pytest.raises(TokenInvalid):
        subject_of(keycloak, tmp_path, {"aud": None}, JWT_AUDIENCE="our-api")
    assert subject_of(keycloak, tmp_path, {"aud": ["account", "our-api"]}, JWT_AUDIENCE="our-api,other")
    assert subject_of(keycloak, tmp_path, {"aud": None}, JWT_AUDIENCE="our-api", JWT_OPTIONAL="aud")
    with pytest.raises(TokenInvalid):
        subject_of(keycloak, tmp_path, {"sub": "ann"}, JWT_SUBJECTS="uuid")
    with pytest.raises(TokenInvalid):
        subject_of(keycloak, tmp_path, {"role": "guest"}, JWT_ROLES="user,admin")


def test_preset_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"SYNCBEAT_JWT_PROFILE: want one of auth0, clerk, .* supabase"):
        configured_credentials(load_settings({"SYNCBEAT_JWT_PROFILE": "okta"}, None), FakeClock())


def test_preset_table_in_docs_matches_these_tokens() -> None:
    _, _, rest = DOCUMENT.read_text().partition(BEGIN)
    assert rest.partition(END)[0].strip() == table().strip(), "python -m tests.support.presets prints it"
