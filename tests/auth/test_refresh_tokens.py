"""Refresh tokens: what was made here is read, and whatever was changed on the way is refused."""

from __future__ import annotations

import base64

import pytest

from syncbeat_server.auth.sessions.refresh_token_codec import MAX_BYTES, RefreshClaim, RefreshKeys
from syncbeat_server.errors import TokenInvalid

pytestmark = pytest.mark.unit

KEYS = RefreshKeys({"k1": b"s" * 32})
CLAIM = RefreshClaim("default", "0197c1f0-6f6c-7d3e-9d6b-0f3f3f6f9a10", 7)


def refused(keys: RefreshKeys, token: str) -> None:
    with pytest.raises(TokenInvalid) as raised:
        keys.decode(token)
    assert not token or token not in raised.value.message


@pytest.mark.parametrize(
    "claim", [CLAIM, CLAIM._replace(counter=0), CLAIM._replace(counter=2**63), RefreshClaim("a", "s\N{SNOWMAN}", 1)]
)
def test_refresh_token_round_trips(claim: RefreshClaim) -> None:
    token = KEYS.encode(claim)
    assert KEYS.decode(token) == claim
    assert KEYS.encode(claim) == token  # the same again, whenever it is asked for
    assert len(token) < MAX_BYTES


def test_refresh_token_with_a_flipped_bit_is_refused() -> None:
    token = KEYS.encode(CLAIM)
    octets = base64.urlsafe_b64decode(token.removeprefix("sbr_") + "=" * (-len(token[4:]) % 4))
    for at in range(len(octets)):
        for bit in (1, 128):
            changed = octets[:at] + bytes([octets[at] ^ bit]) + octets[at + 1 :]
            refused(KEYS, "sbr_" + base64.urlsafe_b64encode(changed).rstrip(b"=").decode())


def test_refresh_token_with_a_changed_character_is_refused() -> None:
    token = KEYS.encode(CLAIM)
    for at in range(len(token)):
        for other in "A_":
            if token[at] != other:
                refused(KEYS, token[:at] + other + token[at + 1 :])


def test_refresh_token_malformed_is_refused() -> None:
    token = KEYS.encode(CLAIM)
    body = token.removeprefix("sbr_")
    for text in (
        *("", "sbr_", "sbr_A", "x", body, f"sbr_sbr_{body}", f"SBR_{body}", f"{token}=", f"{token}==", f"{token}A"),
        *(token[:-1], token[:-10], f" {token}", f"{token}\n", f"{token[:20]}\n{token[20:]}", token.replace("_", "/")),
        *("sbr_" + "\N{SNOWMAN}" * 20, "sbr_" + "A" * 10_000, "sbr_" + "A" * 100, "sbr_" + "AAAA" * 11, "sbr_AQ"),
    ):
        refused(KEYS, text)


def test_refresh_token_of_other_secrets_is_refused() -> None:
    token = KEYS.encode(CLAIM)
    refused(RefreshKeys({"k1": b"t" * 32}), token)
    refused(RefreshKeys({"k2": b"s" * 32}), token)


def test_refresh_token_secrets_rotate_without_ending_sessions() -> None:
    both = RefreshKeys({"k2": b"t" * 32, "k1": b"s" * 32})
    assert both.decode(KEYS.encode(CLAIM)) == CLAIM
    made = both.encode(CLAIM)
    assert RefreshKeys({"k2": b"t" * 32}).decode(made) == CLAIM
    refused(KEYS, made)
    with pytest.raises(ValueError, match="one secret or more"):
        RefreshKeys({})
