"""Claims of refused tokens in the log: bounded, escaped, and without what may be a token or a secret."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.auth.tokens.redacted_claims import show, show_known

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "claim",
    [
        "https://abcdefghijklmnopqrst.supabase.co/auth/v1",
        "https://securetoken.google.com/my-project-2024-prod",
        "my-very-long-audience-name-for-mobile",
        "6f1e2d3c-aaaa-bbbb-cccc-0123456789ab",
        "authenticated",
    ],
)
def test_shown_claim_of_an_issuer_is_whole(claim: str) -> None:
    assert show(claim) == repr(claim)


@pytest.mark.parametrize(
    "secret",
    [
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJl",
        "https://x.example/?access_token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.c2ln",
        hashlib.sha256(b"a secret").hexdigest(),
        "q+/Zk1" * 8,
        "Bearer 8dTq0ZpL4nV7Yw2RkX9cJm3sHb6F",
    ],
)
def test_shown_claim_hides_tokens_and_secrets(secret: str) -> None:
    shown = show(secret)
    assert "characters>" in shown
    assert all(secret[at : at + 16] not in shown for at in range(24, len(secret) - 16))
    assert show([secret, "web"]).endswith("'web']")
    assert "characters>" in show([secret])


def test_shown_claim_tells_two_long_kids_apart() -> None:
    assert show("Rb1Q" + "aB3" * 13) == "'Rb1Q<43 characters>'"


def test_shown_claim_that_is_cut_closes_its_quote() -> None:
    assert show("it is " * 100).endswith("...'")
    assert show("\n\u00e9").isascii()
    assert show(["one two"] * 50).endswith("'one two', ...]")
    assert show({"a": "secret"}) == "an object"
    assert show_known(["k1", "x" * 400]) == "['k1', ...]"
    assert show_known([]) == "[]"


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_shown_claim_is_one_bounded_line_of_ascii(claim: object) -> None:
    shown = show(claim)
    assert len(shown) <= 100
    assert shown.isascii()
    assert shown.isprintable()
    assert shown[0] not in "'\"" or shown[-1] == shown[0]
