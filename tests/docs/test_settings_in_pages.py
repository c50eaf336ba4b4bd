"""Settings that pages tell their readers to set load as they stand, and let in the tokens they are for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from syncbeat_server.app.authentication import configured_credentials
from syncbeat_server.auth.model import OPTIONAL_CLAIMS, Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import find_key
from syncbeat_server.auth.tokens.verify import parse_token, verify_token
from syncbeat_server.errors import SyncbeatError, TokenInvalid
from syncbeat_server.ops.settings.load import load_settings
from syncbeat_server.ops.settings.server import Settings
from syncbeat_server.transfer.mapping.map_file import parse_map
from tests.docs.pages import ROOT, Block, blocks_of, run_program
from tests.support.fake_clock import FakeClock
from tests.support.presets import NOW, PRESETS, SECRET

pytestmark = pytest.mark.unit

SETTING = re.compile(r"^(?:export )?(SYNCBEAT_\w+=\S+)((?: SYNCBEAT_\w+=\S+)*)$", re.MULTILINE)
TOKENS = ROOT / "docs/tokens.md"
MADE_AT = datetime.fromtimestamp(NOW, UTC)


def variables_of(block: Block) -> dict[str, str]:
    """Return the variables that a block of shell sets."""
    lines = (" ".join(match.groups()).split() for match in SETTING.finditer(block.text))
    return {name: value for line in lines for name, _, value in (pair.partition("=") for pair in line)}


RECIPES = [
    block
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for block in blocks_of(page)
    if block.language == "sh" and variables_of(block)
]
TOML = [
    block for page in sorted((ROOT / "docs").rglob("*.md")) for block in blocks_of(page) if block.language == "toml"
]
# Maps of the Realtime Database say their version; apps files have none.
MAPS = [block for block in TOML if block.text.startswith("version = ")]
APPS = [block for block in TOML if block not in MAPS]


def settings_of(variables: Mapping[str, str], folder: Path) -> Settings:
    """Load the settings; files that they name are made."""
    given = dict(variables)
    for name in ("SYNCBEAT_FCM_CREDENTIALS", "SYNCBEAT_TLS_CERTIFICATE", "SYNCBEAT_TLS_KEY"):
        if name in given:
            (folder / "file").write_text("{}")
            given[name] = str(folder / "file")
    return load_settings(given, env_file=None)


def let_in(token: str, settings: Settings, now: datetime) -> str:
    """Return the user of a token that these settings let in."""
    known = configured_credentials(settings, FakeClock())
    unverified = parse_token(token)
    row = find_key(known.keys, unverified.issuer, unverified.header.kid, unverified.header.algorithm)
    if row is None:
        raise TokenInvalid("no such key")
    return verify_token(unverified, row, now).subject


@pytest.mark.parametrize("block", RECIPES, ids=[block.place for block in RECIPES])
def test_settings_of_a_page_load(block: Block, tmp_path: Path) -> None:
    configured_credentials(settings_of(variables_of(block), tmp_path), FakeClock())


@pytest.mark.parametrize("block", APPS, ids=[block.place for block in APPS])
def test_apps_file_of_a_page_loads(block: Block, tmp_path: Path) -> None:
    (tmp_path / "apps.toml").write_text(block.text)
    settings = load_settings({"SYNCBEAT_APPS_FILE": str(tmp_path / "apps.toml")}, env_file=None)
    configured_credentials(settings, FakeClock())


@pytest.mark.parametrize("block", MAPS, ids=[block.place for block in MAPS])
def test_map_of_a_page_is_one(block: Block) -> None:
    assert parse_map(block.text, block.place).rules


OF_PROFILES = [block for block in RECIPES if "SYNCBEAT_JWT_PROFILE" in variables_of(block)]


@pytest.mark.parametrize("block", OF_PROFILES, ids=[block.place for block in OF_PROFILES])
def test_recipe_of_a_profile_lets_in_the_tokens_of_its_issuer(block: Block, tmp_path: Path) -> None:
    variables = variables_of(block)
    preset = next(one for one in PRESETS if one.name == variables["SYNCBEAT_JWT_PROFILE"])
    # No key of the issuer can be fetched here: those of the made-up token stand in for what is at its address.
    has_secret = variables.pop("SYNCBEAT_JWT_SECRETS", None) is not None
    has_keys = variables.pop("SYNCBEAT_JWKS_URL", None) is not None or not has_secret
    if has_secret:
        variables["SYNCBEAT_JWT_SECRETS"] = f"legacy={SECRET}"
        assert let_in(preset.token({"^alg": "HS256"}), settings_of(variables, tmp_path), MADE_AT)
    if has_keys:
        (tmp_path / "jwks.json").write_text(preset.jwks())
        variables["SYNCBEAT_JWKS_FILE"] = str(tmp_path / "jwks.json")
        assert let_in(preset.token({}), settings_of(variables, tmp_path), MADE_AT)


def test_recipes_are_there_for_each_issuer_that_is_promised() -> None:
    named = [variables_of(block)["SYNCBEAT_JWT_PROFILE"] for block in OF_PROFILES if block.page == "docs/tokens.md"]
    assert sorted(named) == ["auth0", "clerk", "cognito", "firebase", "supabase", "supabase", "supabase"]


def test_recipe_of_an_own_issuer_lets_in_the_token_that_its_program_makes(tmp_path: Path) -> None:
    blocks = blocks_of(TOKENS)
    (program,) = [block for block in blocks if block.language == "python"]
    settings = settings_of(variables_of(blocks[blocks.index(program) - 1]), tmp_path)
    token = run_program(program.text, {}, tmp_path).stdout.strip()
    assert let_in(token, settings, datetime.now(UTC)) == "alice"
    with pytest.raises(SyncbeatError):
        let_in(token, settings, datetime.now(UTC) + timedelta(hours=2))


def test_claims_of_the_table_are_those_required_by_default() -> None:
    section = TOKENS.read_text(encoding="utf-8").split("## What a token must say")[1].split("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    (payload,) = [json.loads(block.text) for block in blocks_of(TOKENS) if block.language == "json"]
    assert set(named) == set(payload) == OPTIONAL_CLAIMS | {"iss", "sub", "exp"}
    row = KeyRow(Issuer("default", "syncbeat"), "k1", "HS256", SECRET.encode())

    def user_of(claims: Mapping[str, object]) -> str:
        unverified = parse_token(PRESETS[0].token({"^alg": "HS256", **dict.fromkeys(PRESETS[0].claims), **claims}))
        return verify_token(unverified, row, datetime.fromtimestamp(payload["iat"], UTC)).subject

    assert user_of(payload) == payload["sub"]
    for claim in payload:
        with pytest.raises(TokenInvalid):
            user_of({**payload, claim: None})


def test_default_issuer_of_the_table_is_that_of_the_settings() -> None:
    settings = load_settings({"SYNCBEAT_JWT_SECRETS": f"k1={SECRET}"}, env_file=None)
    token = PRESETS[0].token({"^alg": "HS256", "^kid": "k1", "iss": "syncbeat"})
    assert let_in(token, settings, MADE_AT) == PRESETS[0].claims["sub"]
