"""A folder of JOSE test vectors, as Project Wycheproof has them: nothing invalid is let in.

`make prove ARGS=--jose-vectors=FOLDER` runs every `*.json` of it. What such vectors sign are no claims, so header,
encoding, choice of the key and signature are what is checked.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from syncbeat_server.auth.model import Issuer, KeyRow
from syncbeat_server.auth.tokens.keys import ALGORITHMS, KeyTable, find_key, key_table, parse_jwks, with_kidless_row
from syncbeat_server.auth.tokens.verify import has_valid_signature, split_token
from syncbeat_server.errors import TokenInvalid

pytestmark = pytest.mark.prove

ISSUER = Issuer("default", "https://issuer.example")
# Vectors that are called valid though RFC 7515, section 2, lets no other characters than those of base64url in.
OTHER_CHARACTERS = ("InvalidCharacterInsertedInHeader", "InvalidCharacterInsertedInPayload")


@dataclass(frozen=True)
class Vector:
    """One token, the keys that are known, and whether it is good."""

    name: str
    comment: str
    token: str
    keys: tuple[Mapping[str, Any], ...]
    valid: bool

    @property
    def algorithms(self) -> set[str]:
        """The algorithms of its keys."""
        return {str(key.get("alg", "")) for key in self.keys}


def vectors_of(path: Path) -> Iterator[Vector]:
    """The vectors of a file, with their public keys, or the secrets."""
    for group in json.loads(path.read_bytes())["testGroups"]:
        for test in group["tests"]:
            shown = test.get("jws", test.get("jwe"))
            token = shown if isinstance(shown, str) else json.dumps(shown)
            known = group.get("public", group.get("private"))
            keys = tuple(known.get("keys", [known]))
            yield Vector(f"{path.name} {test['tcId']}", test["comment"], token, keys, test["result"] == "valid")


def table_of(keys: tuple[Mapping[str, Any], ...]) -> KeyTable:
    """The keys as an operator would give them: secrets in the settings, anything else in a JWKS."""
    if all(key.get("kty") == "oct" for key in keys):
        offered = [key for key in keys if key.get("alg") == "HS256" and key.get("use") == "sig"]
        secrets = [KeyRow(ISSUER, key["kid"], "HS256", base64.urlsafe_b64decode(key["k"] + "==")) for key in offered]
        return key_table(with_kidless_row(secrets))
    return key_table(with_kidless_row(parse_jwks(json.dumps({"keys": keys}).encode(), ISSUER)[0]))


def is_let_in(vector: Vector) -> bool:
    """Tell if header, encoding, key and signature are taken for good."""
    try:
        table = table_of(vector.keys)
        signed, header, _, signature = split_token(vector.token)
    except (ValueError, TokenInvalid):
        return False
    row = find_key(table, ISSUER.name, header.kid, header.algorithm)
    return row is not None and has_valid_signature(signed, header, signature, row)


def test_jose_vectors_invalid_are_refused_and_valid_accepted_where_offered(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], record: Callable[[str, dict[str, object]], None]
) -> None:
    folder: Path | None = pytestconfig.getoption("--jose-vectors")
    if folder is None:
        pytest.skip("no folder of vectors is named: --jose-vectors=FOLDER")
    vectors = [vector for path in sorted(folder.glob("*.json")) for vector in vectors_of(path)]
    assert vectors, f"no vectors of signatures in {folder}"
    let_in = {vector.name for vector in vectors if is_let_in(vector)}
    # Some are called invalid for a spelling that the file has lost: octet for octet they are one that is called valid.
    valid = [(vector.token, vector.keys) for vector in vectors if vector.valid]
    invalid = [vector for vector in vectors if not vector.valid and (vector.token, vector.keys) not in valid]
    wrong = [f"{vector.name} {vector.comment}" for vector in invalid if vector.name in let_in]
    assert not wrong
    refused = [vector for vector in vectors if vector.valid and vector.name not in let_in]
    with capsys.disabled():
        print(f"\n{len(vectors)} vectors, {len(invalid)} of them invalid, and none of these let in; valid and refused:")
        for vector in refused:
            print(f"  {vector.name} {vector.comment}: {', '.join(sorted(vector.algorithms))}")
    unexplained = [one for one in refused if one.comment not in OTHER_CHARACTERS and one.algorithms <= set(ALGORITHMS)]
    assert not unexplained
    kinds = Counter(
        "other characters" if one.comment in OTHER_CHARACTERS else "/".join(one.algorithms) for one in refused
    )
    figures = {"vectors": len(vectors), "invalid": len(invalid), "invalid_let_in": len(wrong), "valid": len(valid)}
    record("jose-vectors", {**figures, "valid_refused": dict(sorted(kinds.items()))})
