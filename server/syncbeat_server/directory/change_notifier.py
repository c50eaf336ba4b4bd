"""Declares the notifications that features send after their commits, so that caches and streams read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ChangeNotifier(Protocol):
    """Notifies all processes of what a transaction changed, after its commit."""

    def scope_changed(self, app_id: str, scope: str) -> None:
        """Notify of a scope's new head, boost or expected change rate."""
        ...

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Notify of users who joined or left scopes."""
        ...

    def devices_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Notify of users of whom a device changed."""
        ...

    def caller_changed(self, app_id: str, user_id: str) -> None:
        """Notify of a user whose tokens may be revoked."""
        ...

    def deliveries_accepted(self) -> None:
        """Wake the workers: deliveries wait to be sent."""
        ...
