"""Decides the outcome of presenting a refresh token: rotated, issued again, or reused and so stolen. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from syncbeat_server.auth.model import SessionState
from syncbeat_server.defaults import ACCESS_TOKEN_S, SESSION_GRACE_S, SESSION_IDLE_S, SESSION_MAX_S


@dataclass(frozen=True)
class SessionRule:
    """Lifetimes of sessions and their tokens in seconds, and the limit of active sessions per user.

    `grace_s`: for so long the parent of the current refresh token is accepted in any case.
    """

    access_s: float = ACCESS_TOKEN_S
    idle_s: float = SESSION_IDLE_S
    max_s: float = SESSION_MAX_S
    grace_s: float = SESSION_GRACE_S
    per_user: int = 100


class Rotation(StrEnum):
    """The outcome of presenting a refresh token."""

    ROTATE = "ROTATE"  # it is the current token: issue the next one
    REISSUE = "REISSUE"  # it is the parent of the current token: issue that one again
    EXPIRED = "EXPIRED"
    REVOKED = "REVOKED"
    REUSED = "REUSED"  # it was spent before and so must have been copied: end the session


def decide_rotation(session: SessionState, counter: int, now: datetime, rule: SessionRule) -> Rotation:
    """Decide the outcome of presenting refresh token number `counter` of a session.

    Each token is spent once (RFC 9700, 4.14.2), but a response may be lost and parallel callers may hold the same
    token. So the parent of the current token gets the current one again: within the grace period, and later as long as
    nothing shows that the current one has arrived. Anything older, and the parent of a token that is in use, has been
    copied.
    """
    if session.revoked or session.blocked or session.generation < session.user_generation:
        return Rotation.REVOKED
    if counter == session.counter:
        return Rotation.EXPIRED if now >= min(session.idle_until, session.expires_at) else Rotation.ROTATE
    if counter != session.counter - 1:
        return Rotation.REUSED
    in_grace = now - session.refreshed_at <= timedelta(seconds=rule.grace_s)
    if not in_grace and session.confirmed >= session.counter:
        return Rotation.REUSED
    return Rotation.EXPIRED if now >= min(session.idle_until, session.expires_at) else Rotation.REISSUE
