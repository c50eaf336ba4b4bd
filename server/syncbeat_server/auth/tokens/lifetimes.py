"""Whether a token is still good, and what becomes of a refresh token. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from syncbeat_server.auth.model import SessionState, Standing, VerifiedToken
from syncbeat_server.defaults import ACCESS_TOKEN_S, SESSION_GRACE_S, SESSION_IDLE_S, SESSION_MAX_S


@dataclass(frozen=True)
class SessionRule:
    """How long sessions and their tokens live, in seconds, and how many live sessions a user has.

    `grace_s`: how long the parent of the present refresh token is good whatever else is known.
    """

    access_s: float = ACCESS_TOKEN_S
    idle_s: float = SESSION_IDLE_S
    max_s: float = SESSION_MAX_S
    grace_s: float = SESSION_GRACE_S
    per_user: int = 100


class Rotation(StrEnum):
    """What becomes of a refresh token that is presented."""

    NEXT = "NEXT"
    AGAIN = "AGAIN"
    EXPIRED = "EXPIRED"
    DEAD = "DEAD"
    STOLEN = "STOLEN"


def is_dead(token: VerifiedToken, standing: Standing) -> bool:
    """Whether a token that is genuine and in its time has been taken back.

    Tokens of our own sessions tell a generation, which only grows; those of other issuers only the second they were
    issued in, by a clock that may be fast by the leeway: what was good at the moment of a revocation may tell any
    second up to then, and all of those are dead with it.
    """
    if not standing.known or standing.shut_out:
        return True
    if token.issuer.own:
        return not standing.session_alive or token.generation < standing.generation
    if standing.revoked_at is None:
        return False
    last = standing.revoked_at + token.issuer.leeway
    return token.issued_at is None or int(token.issued_at.timestamp()) <= int(last.timestamp())


def rotate(session: SessionState, counter: int, now: datetime, rule: SessionRule) -> Rotation:
    """What becomes of the counter-th refresh token of a session.

    Each is spent once (RFC 9700, 4.14.2), but an answer may be lost on its way, and parallel callers may hold the same
    one. So the parent of the present token gets that one AGAIN: within the grace, and after it as long as nothing shows
    that the present one has arrived. Whatever is older, or is the parent of one that is in use, was copied: STOLEN.
    """
    if session.revoked or session.shut_out or session.generation < session.user_generation:
        return Rotation.DEAD
    if counter == session.counter:
        return Rotation.EXPIRED if now >= min(session.idle_until, session.expires_at) else Rotation.NEXT
    if counter != session.counter - 1:
        return Rotation.STOLEN
    in_grace = now - session.refreshed_at <= timedelta(seconds=rule.grace_s)
    if not in_grace and session.confirmed >= session.counter:
        return Rotation.STOLEN
    return Rotation.EXPIRED if now >= min(session.idle_until, session.expires_at) else Rotation.AGAIN
