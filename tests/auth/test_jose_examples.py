"""The examples of the RFCs: those of algorithms that are offered are let in, and nothing that is near to one."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import KeyTable, find_key, key_table, parse_jwks, with_kidless_row
from syncbeat_server.auth.tokens.verify import has_valid_signature, split_token
from syncbeat_server.errors import TokenInvalid

pytestmark = pytest.mark.unit

ISSUER = Issuer("default", "https://issuer.example")
# RFC 7515, appendix A: what its examples sign.
CLAIMS = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
MODULUS = (
    "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4Ql"
    "L-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUs"
    "LA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoud"
    "F8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"
)
SIGNATURE = (
    "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujG"
    "bds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K"
    "0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6"
    "LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
# RFC 7520, section 3.3: the key of section 4.1.
BILBOS = (
    "n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMa"
    "JMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6c"
    "S6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwd"
    "q_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw"
)
FIGURE_13 = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9.SXTigJlzIGEgZGFuZ2Vyb3V"
    "zIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kIGlmIHl"
    "vdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9"
    "mZiB0by4.MRjdkly7_-oTPTS3AXP41iQIGKa80A0ZmTuV5MEaHoxnW2e5CZ5NlKtainoFmKZopdHM1O2U4mwzJdQx996ivp8"
    "3xuglII7PNDi84wnB-BDkoBwA78185hX-Es4JIwmDLJK3lfWRa-XtL0RnltuYv746iYTh_qHRD68BNt1uSNCrUCTJDt5aAE6"
    "x8wW1Kt9eRo4QPocSadnHXFxnt8Is9UzpERV0ePPQdLuW3IS_de3xyIrDaLGdjluPxUAhb6L2aXic1U12podGU0KLUQSE_oI"
    "-ZnmKJ3F4uOZDnd6QZWJushZ41Axf_fcIe8u9ipH84ogoree7vjbU5y18kDquDg"
)
FIGURE_35 = (
    "eyJhbGciOiJIUzI1NiIsImtpZCI6IjAxOGMwYWU1LTRkOWItNDcxYi1iZmQ2LWVlZjMxNGJjNzAzNyJ9.SXTigJlzIGEgZGF"
    "uZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5"
    "kIGlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN"
    "3ZXB0IG9mZiB0by4.s0h6KThzkfBBBkLspW1h84VsJZFTsPPqMDA7g1Md7p0"
)
EC = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}

EXAMPLES: dict[str, tuple[Mapping[str, Any], str]] = {
    "RFC 7515, A.1 (HS256)": (
        {
            "kty": "oct",
            "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        },
        f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{CLAIMS}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    ),
    "RFC 7515, A.2 (RS256)": (
        {"kty": "RSA", "n": MODULUS, "e": "AQAB"},
        f"eyJhbGciOiJSUzI1NiJ9.{CLAIMS}.{SIGNATURE}",
    ),
    "RFC 7515, A.3 (ES256)": (
        EC,
        (
            f"eyJhbGciOiJFUzI1NiJ9.{CLAIMS}."
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
        ),
    ),
    "RFC 7520, 4.1 (RS256)": (
        {"kty": "RSA", "kid": "bilbo.baggins@hobbiton.example", "use": "sig", "n": BILBOS, "e": "AQAB"},
        FIGURE_13,
    ),
    "RFC 7520, 4.4 (HS256)": (
        {
            "kty": "oct",
            "kid": "018c0ae5-4d9b-471b-bfd6-eef314bc7037",
            "k": "hJtXIZ2uSN5kbQfbtTNWbpdmhkV8FJG-Onbc6mxCcYg",
        },
        FIGURE_35,
    ),
    "RFC 8037, A.4 (EdDSA)": (
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        (
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
        ),
    ),
}
each_example = pytest.mark.parametrize("name", EXAMPLES)


def table_of(key: Mapping[str, Any]) -> KeyTable:
    """The key as an operator would give it: a secret in the settings, anything else in a JWKS."""
    if key["kty"] == "oct":
        secret = base64.urlsafe_b64decode(key["k"] + "==")
        return key_table(with_kidless_row([KeyRow(ISSUER, key.get("kid", "k"), "HS256", secret)]))
    rows, faults = parse_jwks(json.dumps({"keys": [key]}).encode(), ISSUER)
    assert not faults
    return key_table(with_kidless_row(rows))


def is_let_in(table: KeyTable, token: str) -> bool:
    try:
        signed, header, _, signature = split_token(token)
    except TokenInvalid:
        return False
    row = find_key(table, ISSUER.name, header.kid, header.algorithm)
    return row is not None and has_valid_signature(signed, header, signature, row)


@each_example
def test_jose_example_is_accepted(name: str) -> None:
    key, token = EXAMPLES[name]
    assert is_let_in(table_of(key), token)


@each_example
def test_jose_example_with_a_changed_octet_is_refused(name: str) -> None:
    key, token = EXAMPLES[name]
    table = table_of(key)
    for at in range(0, len(token), 7):
        for new in {"A" if token[at] != "A" else "B", "", "=", "."} - {token[at]}:
            assert not is_let_in(table, token[:at] + new + token[at + 1 :]), (at, new)


@each_example
def test_jose_example_is_refused_under_another_key(name: str) -> None:
    _, token = EXAMPLES[name]
    for other, (key, _) in EXAMPLES.items():
        if other != name:
            assert not is_let_in(table_of(key), token), other


@pytest.mark.parametrize(
    "token",
    [
        f"eyJhbGciOiJub25lIn0.{CLAIMS}.",  # RFC 7515, A.5: not signed
        f"eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.{'A' * 176}",  # A.4: ES512
        json.dumps({"payload": CLAIMS, "signatures": []}),  # A.6
        json.dumps({"payload": CLAIMS, "protected": "eyJhbGciOiJFUzI1NiJ9", "signature": ""}),  # A.7
        # Appendix E: a header that says what nobody understands.
        (
            "eyJhbGciOiJub25lIiwNCiAiY3JpdCI6WyJodHRwOi8vZXhhbXBsZS5jb20vVU5ERUZJTkVEIl0sDQogImh0dHA6Ly9leGFtcGxlLmNv"
            "bS9VTkRFRklORUQiOnRydWUNCn0.RkFJTA."
        ),
    ],
    ids=["A.5", "A.4", "A.6", "A.7", "E"],
)
def test_jose_examples_of_unsupported_algorithms_are_refused(token: str) -> None:
    for key, _ in EXAMPLES.values():
        assert not is_let_in(table_of(key), token)
