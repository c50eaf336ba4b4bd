"""Who is calling."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class PrincipalKind(StrEnum):
    """What a caller is; the access option of a method names the kinds it lets in."""

    USER = "user"
    SERVICE = "service"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were checked.

    `name` is the user id or the service's name. `app_id` is the app of a USER; a SERVICE or ADMIN names the app in each
    request, out of `apps`. `methods` are the RPCs it may call (None: all its kind may).
    """

    kind: PrincipalKind
    name: str
    app_id: str = ""
    expires_at: datetime | None = None
    methods: frozenset[str] | None = None
    apps: frozenset[str] = frozenset()

    @property
    def caller(self) -> str:
        """How the caller stands in records: `user:alice`, `service:backend`."""
        return f"{self.kind}:{self.name}"
