"""Decides if a genuine token has been revoked. Pure."""

from __future__ import annotations

from syncbeat_server.auth.model import AccountStatus, VerifiedToken


def is_revoked(token: VerifiedToken, status: AccountStatus) -> bool:
    """Tell if a genuine token within its lifetime has been revoked.

    Tokens of our sessions carry a generation, which only grows. Those of other issuers carry only the second of issue,
    by a clock that may be ahead by the leeway: tokens that existed at the revocation may show any second up to that, so
    all of those are revoked.
    """
    if not status.exists or status.blocked:
        return True
    if token.issuer.own_sessions:
        return not status.session_active or token.generation < status.generation
    if status.revoked_at is None:
        return False
    last = status.revoked_at + token.issuer.leeway
    return token.issued_at is None or int(token.issued_at.timestamp()) <= int(last.timestamp())
