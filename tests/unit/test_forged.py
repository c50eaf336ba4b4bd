"""None of the forged tokens is let in, each is refused at once, and no message repeats any of it."""

from __future__ import annotations

import time

import pytest

from syncbeat_server.auth.tokens import check, read
from syncbeat_server.errors import TokenInvalid
from tests.fakes import START
from tests.forged import CANARY, USER, Forger, table

FORGER = Forger(START)
TABLE = table()
FORGED = FORGER.forged()
MOST_S = 0.005


def verify(token: str) -> str:
    unverified = read(token)
    row = TABLE.get((unverified.issuer, unverified.kid))
    if row is None:
        raise TokenInvalid("no such key")
    return check(unverified, row, START).user_id


def test_the_corpus_is_large_and_its_good_tokens_are_good() -> None:
    assert len(FORGED) == len(set(FORGED.values())) >= 120
    for kid, token in FORGER.good_tokens().items():
        assert verify(token) == USER, kid


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_token_is_refused_at_once(name: str) -> None:
    costs, said = [], ""
    for _ in range(3):
        start = time.thread_time()
        with pytest.raises(TokenInvalid) as raised:
            verify(FORGED[name])
        costs.append(time.thread_time() - start)
        said += raised.value.message
    assert min(costs) < MOST_S
    assert CANARY not in said
    assert FORGED[name][:20] not in said
