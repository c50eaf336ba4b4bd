"""Stands in for the gRPC context of a call, and for a database of account statuses, around the handler pipeline."""

from __future__ import annotations

from syncbeat_server.auth.accounts.account_status_cache import CachedStatus
from syncbeat_server.auth.model import AccountStatus, VerifiedToken


class AllAccepted:
    """An account status cache without a database, which accepts every verified token."""

    async def get(self, token: VerifiedToken, *, fresh: bool = False) -> CachedStatus:
        return CachedStatus(AccountStatus(exists=not fresh, user_id=token.subject), float("inf"))


class CallContext:
    """The context of a call, as far as the handler pipeline uses it."""

    def __init__(self, token: str, request: bytes) -> None:
        self._metadata = (("authorization", f"Bearer {token}"), ("user-agent", "bench"))
        self._request = request

    async def read(self) -> bytes:
        return self._request

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def time_remaining(self) -> float | None:
        return None
