"""Defines the tokens of a session, and where they are stored between runs of the app."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, Self

from syncbeat.v1 import auth_service_pb2 as pb


class SignedOut(Exception):
    """The session is over: its user has to sign in again."""


@dataclass(frozen=True)
class SessionTokens:
    """The tokens of a session, as CreateSession and RefreshSession return them. The text form shows none of them."""

    session_id: str
    access_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_expires_at: datetime

    @classmethod
    def of(cls, response: pb.CreateSessionResponse | pb.RefreshSessionResponse) -> Self:
        """Return the tokens of a response."""
        return cls(
            session_id=response.session_id,
            access_token=response.access_token,
            access_expires_at=response.access_expire_time.ToDatetime(UTC),
            refresh_token=response.refresh_token,
            refresh_expires_at=response.refresh_expire_time.ToDatetime(UTC),
        )

    def to_json(self) -> str:
        """Return the text to store on the device, where only the app can read it."""
        return json.dumps(
            {
                "session_id": self.session_id,
                "access_token": self.access_token,
                "access_expires_at": self.access_expires_at.isoformat(),
                "refresh_token": self.refresh_token,
                "refresh_expires_at": self.refresh_expires_at.isoformat(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the tokens of a stored text. Raises ValueError, KeyError or TypeError for any other text."""
        kept = json.loads(text)
        for name in ("access_expires_at", "refresh_expires_at"):
            kept[name] = datetime.fromisoformat(kept[name])
        return cls(**kept)


class SessionStorage(Protocol):
    """Storage for a session's tokens between runs of the app."""

    async def load(self) -> str | None:
        """Return the text saved last; None when there is none."""
        ...

    async def save(self, text: str | None) -> None:
        """Store this text in place of the last; None: delete it."""
        ...
