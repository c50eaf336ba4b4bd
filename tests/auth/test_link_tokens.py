"""Link tokens: what is signed comes back, and nothing else is taken for one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from syncbeat_server.auth.identities.email_digest import email_digest
from syncbeat_server.auth.identities.link_tokens import LINK_TOKEN_TYPE, sign_link_token, verify_link_token
from syncbeat_server.auth.model import Issuer, KeyRow, LinkGrant
from syncbeat_server.auth.tokens.keys import key_table, new_signing_key, parse_signing_keys
from syncbeat_server.auth.tokens.verify import mint, parse_token, verify_token
from syncbeat_server.errors import TokenExpired, TokenFault, TokenInvalid
from tests.support.fake_clock import START

pytestmark = pytest.mark.unit

SESSIONS = Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)
SHOP = Issuer("shop", "syncbeat:shop", own_sessions=True, uuid_subjects=False)
FOREIGN = Issuer("default", "https://new.example", uuid_subjects=False)
(SIGNER,) = parse_signing_keys(new_signing_key("s1").decode(), SESSIONS)
(SHOPS,) = parse_signing_keys(new_signing_key("s1").decode(), SHOP)
SECRET = "0123456789abcdef0123456789abcdef"
HEADER = {"kid": "s1", "typ": LINK_TOKEN_TYPE}
GRANT = LinkGrant("default", "ann", "https://new.example", "id-1", 3, START + timedelta(minutes=10))
CLAIMS: dict[str, Any] = {
    "iss": SESSIONS.name,
    "sub": "ann",
    "aud": "https://new.example",
    "app": "default",
    "jti": "id-1",
    "gen": 3,
    "exp": int(GRANT.expires_at.timestamp()),
}


def public(row: KeyRow) -> KeyRow:
    return KeyRow(row.issuer, row.kid, row.algorithm, row.key.public_key())


KEYS = key_table([public(SIGNER), public(SHOPS), KeyRow(FOREIGN, "k", "HS256", SECRET)])


def verify(text: str, now: datetime = START) -> LinkGrant:
    return verify_link_token(text, KEYS, now)


def signed(key: Any = SIGNER.key, algorithm: str = "ES256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    made = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(made, key, algorithm=algorithm, headers=HEADER if header is None else header)


def test_link_token_carries_its_grant() -> None:
    text = sign_link_token(SIGNER, GRANT, START)
    assert verify(text) == GRANT
    assert verify(signed()) == GRANT
    assert jwt.get_unverified_header(text) == {"alg": "ES256", "kid": "s1", "typ": LINK_TOKEN_TYPE}


def test_link_token_expires_without_leeway() -> None:
    text = sign_link_token(SIGNER, GRANT, START)
    assert verify(text, GRANT.expires_at - timedelta(seconds=1)) == GRANT
    with pytest.raises(TokenExpired):
        verify(text, GRANT.expires_at)


PEM = SIGNER.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def by_public_key_as_secret() -> str:
    """A token signed by HMAC with the public key as secret, which PyJWT itself refuses to make."""
    import base64
    import hashlib
    import hmac

    head, body, _ = jwt.encode(CLAIMS, SECRET, algorithm="HS256", headers=HEADER).split(".")
    mac = hmac.digest(PEM, f"{head}.{body}".encode(), hashlib.sha256)
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


FORGED: dict[str, str] = {
    "nothing": "",
    "no JWT": "sbr_abc",
    "alg none": jwt.encode(CLAIMS, "", algorithm="none", headers=HEADER),
    "public key as HMAC secret": by_public_key_as_secret(),
    "a foreign issuer's secret": signed(SECRET, "HS256", {"kid": "k", "typ": LINK_TOKEN_TYPE}, iss=FOREIGN.name),
    "a foreign issuer's secret, our iss": signed(SECRET, "HS256", {"kid": "k", "typ": LINK_TOKEN_TYPE}),
    "another app's key": signed(SHOPS.key),
    "another app's key and iss": signed(SHOPS.key, iss=SHOP.name),
    "an access token of our sessions": mint(SIGNER, "ann", START, timedelta(hours=1), claims=CLAIMS),
    "typ of access tokens": signed(header={"kid": "s1", "typ": "at+jwt"}),
    "no typ": signed(header={"kid": "s1", "typ": None}),
    "another kid": signed(header={"kid": "s2", "typ": LINK_TOKEN_TYPE}),
    "crit": signed(header={**HEADER, "crit": ["exp"]}),
    "no jti": signed(jti=None),
    "empty jti": signed(jti=""),
    "no sub": signed(sub=None),
    "no aud": signed(aud=None),
    "a list as aud": signed(aud=["https://new.example", "https://other.example"]),
    "no gen": signed(gen=None),
    "a boolean as gen": signed(gen=True),
    "no exp": signed(exp=None),
    "a text as exp": signed(exp="tomorrow"),
    "cut": signed()[:-4],
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_link_token_is_refused(name: str) -> None:
    with pytest.raises(TokenInvalid) as caught:
        verify(FORGED[name])
    assert caught.value.fault in (TokenFault.LINK_TOKEN, TokenFault.TIME)
    assert SECRET not in caught.value.detail


def test_link_token_is_no_access_token() -> None:
    for text in (
        sign_link_token(SIGNER, GRANT, START),
        signed(aud="authenticated", role="authenticated", session_id="s", iat=int(START.timestamp()), ctr=0),
    ):
        with pytest.raises(TokenInvalid):
            verify_token(parse_token(text), public(SIGNER), START)


def test_email_digest_is_of_the_exact_address_within_an_app() -> None:
    one = email_digest("default", "ann@example.com")
    assert one == email_digest("default", "ann@example.com")
    others = [
        email_digest("default", "Ann@example.com"),
        email_digest("default", "ann@EXAMPLE.com"),
        email_digest("default", "a.nn@example.com"),
        email_digest("default", "ann+x@example.com"),
        email_digest("default", " ann@example.com"),
        email_digest("default", "ann@example.com\u200b"),
        email_digest("shop", "ann@example.com"),
    ]
    assert len({one, *others}) == len(others) + 1
    assert len(email_digest("default", "\ud800")) == 32
