"""Tests which tokens are dead, and what becomes of a refresh token."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from syncbeat_server.auth.model import Issuer, SessionState, Standing, VerifiedToken
from syncbeat_server.auth.tokens.lifetimes import Rotation, SessionRule, is_dead, rotate
from tests.support.fake_clock import START

pytestmark = pytest.mark.unit

FOREIGN, OWN = Issuer("default", "issuer"), Issuer("default", "ours", own=True)
RULE = SessionRule(grace_s=30)
SESSION = SessionState(
    user_id="ann",
    claims={},
    counter=5,
    confirmed=4,
    generation=2,
    refreshed_at=START,
    idle_until=START + timedelta(days=30),
    expires_at=START + timedelta(days=90),
    revoked=False,
    shut_out=False,
    user_generation=2,
)


def token(issuer: Issuer, issued_at: datetime | None = START, generation: int = 2) -> VerifiedToken:
    return VerifiedToken(issuer, "ann", "s", issued_at, START + timedelta(hours=1), generation)


@pytest.mark.parametrize(
    ("standing", "dead"),
    [
        (Standing(known=True), False),
        (Standing(known=False), True),
        (Standing(known=True, shut_out=True), True),
        (Standing(known=True, revoked_at=START - timedelta(seconds=31)), False),
        (Standing(known=True, revoked_at=START - timedelta(seconds=30)), True),
        (Standing(known=True, revoked_at=START - timedelta(seconds=1)), True),
        (Standing(known=True, revoked_at=START), True),
        (Standing(known=True, revoked_at=START + timedelta(milliseconds=1)), True),
        (Standing(known=True, revoked_at=START + timedelta(days=1)), True),
        (Standing(known=True, generation=99), False),
    ],
)
def test_revocation_kills_a_foreign_token_by_its_issue_second(standing: Standing, dead: bool) -> None:
    assert is_dead(token(FOREIGN), standing) is dead


@pytest.mark.parametrize("leeway_s", [0, 1, 10, 30])
def test_revocation_kills_a_foreign_token_valid_then_despite_clock_skew(leeway_s: int) -> None:
    issuer = replace(FOREIGN, leeway=timedelta(seconds=leeway_s))
    revoked_at = START + timedelta(milliseconds=100)
    standing = Standing(known=True, revoked_at=revoked_at)
    for ahead_s in range(-leeway_s, leeway_s + 1):
        assert is_dead(token(issuer, START + timedelta(seconds=ahead_s)), standing), ahead_s
    assert is_dead(token(issuer, revoked_at + issuer.leeway), standing)
    assert is_dead(token(issuer, START + issuer.leeway + timedelta(milliseconds=900)), standing)
    assert not is_dead(token(issuer, START + issuer.leeway + timedelta(seconds=1)), standing)
    # Our own sessions tell by their generation which came first.
    assert not is_dead(token(replace(issuer, own=True)), replace(standing, session_alive=True, generation=2))


def test_revocation_kills_a_foreign_token_without_issue_time() -> None:
    standing = Standing(known=True, revoked_at=START + timedelta(milliseconds=100))
    assert is_dead(token(FOREIGN, None), standing)
    assert not is_dead(token(FOREIGN, None), Standing(known=True))


@pytest.mark.parametrize(
    ("standing", "dead"),
    [
        (Standing(known=True, session_alive=True, generation=2), False),
        (Standing(known=True, session_alive=True, generation=1), False),
        (Standing(known=True, session_alive=True, generation=3), True),
        (Standing(known=True, session_alive=False, generation=2), True),
        (Standing(known=True, session_alive=True, generation=2, shut_out=True), True),
        (Standing(known=False, session_alive=True), True),
        # A revocation in the second of issue: the generation tells which came first.
        (Standing(known=True, session_alive=True, generation=2, revoked_at=START), False),
    ],
)
def test_own_token_dies_by_its_session_and_generation(standing: Standing, dead: bool) -> None:
    assert is_dead(token(OWN), standing) is dead


LONG, SHORT = timedelta(hours=1), timedelta(seconds=30)


@pytest.mark.parametrize(
    ("counter", "changes", "after", "becomes"),
    [
        (5, {}, LONG, Rotation.NEXT),
        (4, {}, SHORT, Rotation.AGAIN),
        (4, {}, LONG, Rotation.AGAIN),  # nothing of number 5 was ever used: the answer was lost
        (4, {"confirmed": 5}, SHORT, Rotation.AGAIN),  # another task of the same device was faster
        (4, {"confirmed": 5}, SHORT + timedelta(milliseconds=1), Rotation.STOLEN),
        (3, {}, timedelta(0), Rotation.STOLEN),
        (0, {}, LONG, Rotation.STOLEN),
        (6, {}, LONG, Rotation.STOLEN),  # the database went back in time
        (5, {"revoked": True}, LONG, Rotation.DEAD),
        (3, {"revoked": True}, LONG, Rotation.DEAD),
        (5, {"shut_out": True}, LONG, Rotation.DEAD),
        (5, {"user_generation": 3}, LONG, Rotation.DEAD),
        (5, {}, timedelta(days=30), Rotation.EXPIRED),
        (4, {}, timedelta(days=30), Rotation.EXPIRED),
        (3, {}, timedelta(days=30), Rotation.STOLEN),
        (5, {"idle_until": START + timedelta(days=99)}, timedelta(days=90), Rotation.EXPIRED),
    ],
)
def test_refresh_token_decision_table(
    counter: int, changes: dict[str, Any], after: timedelta, becomes: Rotation
) -> None:
    assert rotate(replace(SESSION, **changes), counter, START + after, RULE) is becomes
