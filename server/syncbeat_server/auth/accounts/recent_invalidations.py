"""Remembers which users were invalidated while account statuses are read: whose status it is, only the read tells."""

from __future__ import annotations

_MOST_USERS = 10_000  # of one outage; beyond, every read that is under way counts as overtaken


class RecentInvalidations:
    """Users who were invalidated since the oldest read that is still under way, each with the number of its notice."""

    def __init__(self, most: int = _MOST_USERS) -> None:
        self._most = most
        self._number = 0
        self._all_up_to = 0
        self._by_user: dict[tuple[str, str], int] = {}

    @property
    def number(self) -> int:
        """The number of the last notice, which a read keeps from its beginning."""
        return self._number

    def add(self, app_id: str, user_id: str) -> None:
        """Note that a user is invalidated."""
        self._number += 1
        if len(self._by_user) >= self._most:
            self.forget()
            self._all_up_to = self._number
        self._by_user[app_id, user_id] = self._number

    def since(self, number: int, app_id: str, user_id: str) -> bool:
        """Tell if a user was invalidated after the notice of this number, as far as is remembered: in doubt it was."""
        return self._all_up_to > number or self._by_user.get((app_id, user_id), 0) > number

    def forget(self) -> None:
        """Forget them, once no read is under way."""
        self._by_user.clear()
