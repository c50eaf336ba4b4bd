"""Tests the claims of a token beside its subject: audience, kind and times."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from syncbeat_server.auth.model import OPTIONAL_CLAIMS, ClaimRule, Issuer, KeyRow, VerifiedToken
from syncbeat_server.auth.tokens import verify as verify_module
from syncbeat_server.auth.tokens.keys import find_key, key_table
from syncbeat_server.auth.tokens.verify import mint, parse_token, verify_token
from syncbeat_server.errors import TokenExpired, TokenInvalid
from tests.support.fake_clock import START
from tests.support.forged_tokens import SECRET, Forger

pytestmark = pytest.mark.unit

NOW = int(START.timestamp())
LENIENT = Issuer("default", "https://project.example/auth/v1", required=frozenset(), uuid_subjects=False)
FORGER = Forger(START)


def verify(issuer: Issuer, token: str) -> VerifiedToken:
    """As the door does it."""
    unverified = parse_token(token)
    header = unverified.header
    row = find_key(key_table([KeyRow(issuer, "hs", "HS256", SECRET)]), unverified.issuer, header.kid, header.algorithm)
    assert row is not None
    return verify_token(unverified, row, START)


def is_let_in(issuer: Issuer, token: str) -> bool:
    try:
        verify(issuer, token)
    except TokenInvalid:
        return False
    return True


@pytest.mark.parametrize("claim", sorted(OPTIONAL_CLAIMS))
def test_optional_claim_may_be_absent(claim: str) -> None:
    assert is_let_in(LENIENT, FORGER.odd(**{claim: None}))
    assert not is_let_in(replace(LENIENT, required=frozenset({claim})), FORGER.odd(**{claim: None}))


PRESENT_AND_WRONG: dict[str, tuple[Any, ...]] = {
    "aud": ("another", "", "Authenticated", "authenticated ", [], ["another"], ["authenticated", 7], 7, True, {}),
    "role": ("admin", "anon", "service_role", "", "Authenticated", ["authenticated"], {"authenticated": 1}, 1, True),
    "session_id": ("", "x" * 129, "a\nb", "\0", 7, 1.5, True, ["s"], {"id": "s"}),
    "iat": ("now", str(NOW), True, False, [NOW], {}, NOW + 31, NOW + 30.5, 10**18, -1, "2026-01-01T00:00:00Z"),
}


@pytest.mark.parametrize(("claim", "value"), [(name, one) for name, all_ in PRESENT_AND_WRONG.items() for one in all_])
@pytest.mark.parametrize("issuer", [LENIENT, replace(LENIENT, required=OPTIONAL_CLAIMS)], ids=["optional", "required"])
def test_claim_present_and_wrong_is_refused(issuer: Issuer, claim: str, value: Any) -> None:
    assert is_let_in(issuer, FORGER.good())
    assert not is_let_in(issuer, FORGER.odd(**{claim: value}))


@pytest.mark.parametrize("claim", [*sorted(OPTIONAL_CLAIMS), "exp", "nbf", "auth_time", "sub"])
def test_claim_of_null_counts_as_present_and_wrong(claim: str) -> None:
    text = json.dumps(FORGER.claims(**{claim: "null"})).replace('"null"', "null")
    assert not is_let_in(LENIENT, FORGER.raw({"alg": "HS256", "kid": "hs"}, text.encode()))


def test_audience_may_be_any_of_several() -> None:
    issuer = replace(LENIENT, audiences=("api", "https://api.example/"))
    ours: tuple[Any, ...] = ("api", "https://api.example/", ["api"], ["userinfo", "https://api.example/"])
    for audience in ours:
        assert is_let_in(issuer, FORGER.odd(aud=audience)), audience
    others: tuple[Any, ...] = (
        "authenticated",
        "https://api.example",
        ["userinfo"],
        "api https://api.example/",
        [["api"]],
    )
    for audience in others:
        assert not is_let_in(issuer, FORGER.odd(aud=audience)), audience
    nobody = replace(LENIENT, audiences=())
    assert not is_let_in(nobody, FORGER.good())
    assert is_let_in(nobody, FORGER.odd(aud=None))


def test_audience_of_minted_tokens_is_the_first_configured() -> None:
    issuer = replace(LENIENT, audiences=("one", "two"))
    token = mint(KeyRow(issuer, "hs", "HS256", SECRET), "ann", START, timedelta(minutes=1))
    assert parse_token(token).claims["aud"] == "one"
    assert is_let_in(issuer, token)


def test_role_claim_is_refused_only_for_api_keys() -> None:
    issuer = replace(LENIENT, roles=None)
    for role in ("admin", "", ["anon"], 7, None):
        assert is_let_in(issuer, FORGER.odd(role=role)), role
    for role in ("anon", "service_role"):
        assert not is_let_in(issuer, FORGER.odd(role=role)), role


@pytest.mark.parametrize("named", ["azp", "client_id"])
def test_client_id_must_be_listed(named: str) -> None:
    issuer = replace(LENIENT, clients=frozenset({"app", "web"}))
    for client in ("app", "web"):
        assert is_let_in(issuer, FORGER.odd(**{named: client}))
    strangers: tuple[Any, ...] = ("other", "", "App", ["app"], 7, True, {})
    for stranger in strangers:
        assert not is_let_in(issuer, FORGER.odd(**{named: stranger})), stranger
        assert not is_let_in(replace(issuer, client_optional=True), FORGER.odd(**{named: stranger})), stranger
    assert not is_let_in(issuer, FORGER.odd(azp="app", client_id="other"))
    assert not is_let_in(issuer, FORGER.odd(azp="other", client_id="app"))
    assert is_let_in(issuer, FORGER.odd(azp="app", client_id="web"))
    assert not is_let_in(issuer, FORGER.good()), "it does not say"
    assert not is_let_in(issuer, FORGER.odd(auth_time=NOW)), "it does not say"
    assert is_let_in(replace(issuer, client_optional=True), FORGER.good())
    assert is_let_in(LENIENT, FORGER.odd(**{named: "anybody"}))


@pytest.mark.parametrize("typ", [..., "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/jwt"])
def test_token_type_of_access_token_is_accepted(typ: Any) -> None:
    assert is_let_in(LENIENT, FORGER.headed(typ=typ))
    only = replace(LENIENT, types=frozenset({"at+jwt"}))
    assert is_let_in(only, FORGER.headed(typ=typ)) is (typ is not ... and "at+" in typ.lower())


@pytest.mark.parametrize(
    "typ",
    [
        "logout+jwt",
        "dpop+jwt",
        "secevent+jwt",
        "rt+jwt",
        "id+jwt",
        "JOSE",
        "JWE",
        "",
        "application/",
        "jwt ",
        None,
        7,
        ["JWT"],
    ],
    ids=str,
)
def test_token_type_of_anything_else_is_refused(typ: Any) -> None:
    assert not is_let_in(LENIENT, FORGER.headed(typ=typ))


OTHER_KINDS: list[dict[str, Any]] = [
    {"token_use": "id"},
    {"token_use": "Access"},
    {"token_use": ["access"]},
    {"token_use": 1},
    {"typ": "ID"},
    {"typ": "Refresh"},
    {"typ": "Offline"},
    {"typ": "Logout"},
    {"type": "refresh"},
    {"token_type": "refresh"},
    {"token_type": "id_token"},
    {"at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
    {"c_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
    {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    {"gty": "client-credentials"},
    {"azp": "1f0c7a52-6f6c-4d3e-9d6b-0f3f3f6f9a10"},
    {"client_id": "1f0c7a52-6f6c-4d3e-9d6b-0f3f3f6f9a10"},
]


@pytest.mark.parametrize("changes", OTHER_KINDS, ids=str)
def test_token_type_id_refresh_logout_and_machine_are_refused(changes: dict[str, Any]) -> None:
    assert not is_let_in(LENIENT, FORGER.odd(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"token_use": "access"},
        {"typ": "Bearer"},
        {"type": "access"},
        {"token_type": "Bearer"},
        {"type": ["refresh"]},
        {"events": ["opened"]},
        {"gty": "password"},
        {"nonce": "n"},
        {"auth_time": NOW + 30},
        {"auth_time": 0},
    ],
    ids=str,
)
def test_claims_that_only_resemble_kinds_are_accepted(changes: dict[str, Any]) -> None:
    assert is_let_in(LENIENT, FORGER.odd(**changes))


def test_issuer_rule_applies_where_its_claim_is_present() -> None:
    issuer = replace(LENIENT, rules=(ClaimRule("sts", frozenset({"active"})), ClaimRule("nonce", frozenset())))
    assert is_let_in(issuer, FORGER.odd(sts="active"))
    wrong: list[dict[str, Any]] = [{"sts": "pending"}, {"sts": ["active"]}, {"sts": {}}, {"nonce": ""}, {"nonce": "n"}]
    for changes in wrong:
        assert not is_let_in(issuer, FORGER.odd(**changes)), changes


def test_custom_claims_of_own_sessions_do_not_change_their_kind() -> None:
    own = replace(LENIENT, own_sessions=True)
    claims = {"gen": 0, "ctr": 0, "token_use": "id", "typ": "ID", "at_hash": "x", "auth_time": "yesterday", "gty": "x"}
    assert is_let_in(own, FORGER.odd(**claims))
    assert not is_let_in(own, FORGER.headed(typ="logout+jwt"))


# Every time claim as each kind of number, or what is none: the JSON text, and whether it is one.
NUMBERS = {
    f"{NOW}": True,
    f"{NOW}.0": True,
    f"{NOW}.25": True,
    f"{NOW}.9999999999": True,
    f"{NOW / 1e9:.9f}e9": True,
    f"{NOW / 1e9:.9f}E+9": True,
    "0": True,
    "-0": True,
    "0.0": True,
    "1e-400": True,
    "1": True,
    "253402214399": True,
    "253402214400": False,
    "253402300769": False,
    "253402300770": False,
    "253402300799": False,
    "253402300800": False,
    "1e12": False,
    f"{NOW}000": False,
    f"{NOW}000000000": False,
    "9007199254740993": False,
    "9223372036854775807": False,
    "9223372036854775808": False,
    "18446744073709551615": False,
    "18446744073709551616": False,
    "1e308": False,
    "1e309": False,
    "1" * 400: False,
    "-1": False,
    "-1e-9": False,
    "-62135596801": False,
    "-1e308": False,
    "true": False,
    "false": False,
    "null": False,
    '""': False,
    f'"{NOW}"': False,
    '"2026-11-29T00:00:00Z"': False,
    f"[{NOW}]": False,
    "{}": False,
    "NaN": False,
    "Infinity": False,
    "-Infinity": False,
    "0x10": False,
    "01": False,
    "1_000": False,
}


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf", "auth_time"])
@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: text[:24])
def test_time_claims_treat_each_number_form_alike(claim: str, text: str) -> None:
    body = json.dumps(FORGER.claims(**{claim: "@"})).replace('"@"', text)
    token = FORGER.raw({"alg": "HS256", "kid": "hs"}, body.encode())
    if not NUMBERS[text]:
        assert not is_let_in(LENIENT, token)
        return
    seconds = float(text)
    if claim == "exp" and seconds <= NOW - 30:
        with pytest.raises(TokenExpired):
            verify(LENIENT, token)
    elif claim != "exp" and seconds > NOW + 30:
        assert not is_let_in(LENIENT, token)
    else:
        verified = verify(LENIENT, token)
        told = verified.expires_at if claim == "exp" else verified.issued_at
        if claim in ("exp", "iat"):
            assert told is not None
            assert abs(told.timestamp() - seconds) < 1e-3
            assert told + timedelta(hours=23) - timedelta(hours=23) == told, "there is room to calculate with it"


def test_header_cache_skips_a_long_header() -> None:
    verify_module._cached_header.cache_clear()
    for number in range(50):
        header = {"alg": "HS256", "kid": "hs", "more": f"{number}" + "x" * 2_000}
        assert is_let_in(LENIENT, FORGER.raw(header, FORGER.claims()))
    assert verify_module._cached_header.cache_info().currsize == 0
    for _ in range(2):
        assert is_let_in(LENIENT, FORGER.good())
    assert verify_module._cached_header.cache_info().hits == 1
    assert len(base64.urlsafe_b64decode(FORGER.good().split(".")[0] + "==")) < 100
