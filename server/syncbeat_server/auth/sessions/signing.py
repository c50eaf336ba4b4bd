"""Signs the tokens of our own sessions, and checks the claims that a backend may put into them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple

import orjson

from syncbeat_server.auth.model import KeyRow, SessionTimes, SessionTokens
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshClaim, RefreshKeys
from syncbeat_server.auth.tokens.verify import COUNTER, RESERVED, mint
from syncbeat_server.errors import FieldReason, FieldViolation, InvalidRequest

_MAX_CLAIMS_BYTES = 2_048


class SigningKeys(NamedTuple):
    """The keys that sign session tokens: access tokens by app, and refresh tokens."""

    access: Mapping[str, KeyRow]
    refresh: RefreshKeys


def issue_tokens(
    keys: SigningKeys,
    claim: RefreshClaim,
    user_id: str,
    claims: Mapping[str, str | int],
    times: SessionTimes,
    max_life: timedelta,
) -> SessionTokens:
    """Sign the refresh token of a claim, and an access token that lives up to `max_life` but not beyond the session.

    The access token carries the refresh token's counter, so that its use confirms that the refresh token has arrived.
    """
    life = min(max_life, times.expires_at - times.now)
    access_token = mint(
        keys.access[claim.app_id],
        user_id,
        times.now,
        life,
        session_id=claim.session_id,
        claims={**claims, COUNTER: claim.counter},
    )
    return SessionTokens(
        session_id=claim.session_id,
        access_token=access_token,
        access_expires_at=times.now + life,
        refresh_token=keys.refresh.encode(claim),
        refresh_expires_at=min(times.idle_until, times.expires_at),
    )


def check_claims(claims: Mapping[str, str]) -> None:
    """Check the claims that a backend wants in a session's access tokens.

    Raises:
        InvalidRequest: claims are reserved, or too large together: access tokens have at most 8 KiB.
    """
    violations = [
        FieldViolation(f"claims[{orjson.dumps(name).decode()}]", "this claim is reserved", FieldReason.RESERVED)
        for name in sorted(claims.keys() & RESERVED)
    ]
    if sum(len(name.encode()) + len(text.encode()) for name, text in claims.items()) > _MAX_CLAIMS_BYTES:
        violations.append(FieldViolation("claims", f"at most {_MAX_CLAIMS_BYTES} bytes in all", FieldReason.TOO_LONG))
    if violations:
        raise InvalidRequest(*violations)
