"""Tests which tokens are dead, and what becomes of a refresh token."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from syncbeat_server.auth.model import AccountStatus, Issuer, SessionState, VerifiedToken
from syncbeat_server.auth.sessions.rotation_and_reuse import Rotation, SessionRule, decide_rotation
from syncbeat_server.auth.tokens.revocation import is_revoked
from tests.support.fake_clock import START

pytestmark = pytest.mark.unit

FOREIGN, OWN = Issuer("default", "issuer"), Issuer("default", "ours", own_sessions=True)
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
    blocked=False,
    user_generation=2,
)


def token(issuer: Issuer, issued_at: datetime | None = START, generation: int = 2) -> VerifiedToken:
    return VerifiedToken(issuer, "ann", "s", issued_at, START + timedelta(hours=1), generation)


@pytest.mark.parametrize(
    ("standing", "dead"),
    [
        (AccountStatus(exists=True), False),
        (AccountStatus(exists=False), True),
        (AccountStatus(exists=True, blocked=True), True),
        (AccountStatus(exists=True, revoked_at=START - timedelta(seconds=31)), False),
        (AccountStatus(exists=True, revoked_at=START - timedelta(seconds=30)), True),
        (AccountStatus(exists=True, revoked_at=START - timedelta(seconds=1)), True),
        (AccountStatus(exists=True, revoked_at=START), True),
        (AccountStatus(exists=True, revoked_at=START + timedelta(milliseconds=1)), True),
        (AccountStatus(exists=True, revoked_at=START + timedelta(days=1)), True),
        (AccountStatus(exists=True, generation=99), False),
    ],
)
def test_revocation_kills_a_foreign_token_by_its_issue_second(standing: AccountStatus, dead: bool) -> None:
    assert is_revoked(token(FOREIGN), standing) is dead


@pytest.mark.parametrize("leeway_s", [0, 1, 10, 30])
def test_revocation_kills_a_foreign_token_valid_then_despite_clock_skew(leeway_s: int) -> None:
    issuer = replace(FOREIGN, leeway=timedelta(seconds=leeway_s))
    revoked_at = START + timedelta(milliseconds=100)
    standing = AccountStatus(exists=True, revoked_at=revoked_at)
    for ahead_s in range(-leeway_s, leeway_s + 1):
        assert is_revoked(token(issuer, START + timedelta(seconds=ahead_s)), standing), ahead_s
    assert is_revoked(token(issuer, revoked_at + issuer.leeway), standing)
    assert is_revoked(token(issuer, START + issuer.leeway + timedelta(milliseconds=900)), standing)
    assert not is_revoked(token(issuer, START + issuer.leeway + timedelta(seconds=1)), standing)
    # Our own sessions tell by their generation which came first.
    assert not is_revoked(
        token(replace(issuer, own_sessions=True)), replace(standing, session_active=True, generation=2)
    )


def test_revocation_kills_a_foreign_token_without_issue_time() -> None:
    standing = AccountStatus(exists=True, revoked_at=START + timedelta(milliseconds=100))
    assert is_revoked(token(FOREIGN, None), standing)
    assert not is_revoked(token(FOREIGN, None), AccountStatus(exists=True))


@pytest.mark.parametrize(
    ("standing", "dead"),
    [
        (AccountStatus(exists=True, session_active=True, generation=2), False),
        (AccountStatus(exists=True, session_active=True, generation=1), False),
        (AccountStatus(exists=True, session_active=True, generation=3), True),
        (AccountStatus(exists=True, session_active=False, generation=2), True),
        (AccountStatus(exists=True, session_active=True, generation=2, blocked=True), True),
        (AccountStatus(exists=False, session_active=True), True),
        # A revocation in the second of issue: the generation tells which came first.
        (AccountStatus(exists=True, session_active=True, generation=2, revoked_at=START), False),
    ],
)
def test_own_token_dies_by_its_session_and_generation(standing: AccountStatus, dead: bool) -> None:
    assert is_revoked(token(OWN), standing) is dead


LONG, SHORT = timedelta(hours=1), timedelta(seconds=30)


@pytest.mark.parametrize(
    ("counter", "changes", "after", "becomes"),
    [
        (5, {}, LONG, Rotation.ROTATE),
        (4, {}, SHORT, Rotation.REISSUE),
        (4, {}, LONG, Rotation.REISSUE),  # nothing of number 5 was ever used: the answer was lost
        (4, {"confirmed": 5}, SHORT, Rotation.REISSUE),  # another task of the same device was faster
        (4, {"confirmed": 5}, SHORT + timedelta(milliseconds=1), Rotation.REUSED),
        (3, {}, timedelta(0), Rotation.REUSED),
        (0, {}, LONG, Rotation.REUSED),
        (6, {}, LONG, Rotation.REUSED),  # the database went back in time
        (5, {"revoked": True}, LONG, Rotation.REVOKED),
        (3, {"revoked": True}, LONG, Rotation.REVOKED),
        (5, {"blocked": True}, LONG, Rotation.REVOKED),
        (5, {"user_generation": 3}, LONG, Rotation.REVOKED),
        (5, {}, timedelta(days=30), Rotation.EXPIRED),
        (4, {}, timedelta(days=30), Rotation.EXPIRED),
        (3, {}, timedelta(days=30), Rotation.REUSED),
        (5, {"idle_until": START + timedelta(days=99)}, timedelta(days=90), Rotation.EXPIRED),
    ],
)
def test_refresh_token_decision_table(
    counter: int, changes: dict[str, Any], after: timedelta, becomes: Rotation
) -> None:
    assert decide_rotation(replace(SESSION, **changes), counter, START + after, RULE) is becomes
