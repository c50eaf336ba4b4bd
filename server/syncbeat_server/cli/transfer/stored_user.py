"""Refuses ids of which nothing is stored, of the commands that export or erase what is of one user."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from syncbeat_server.app import Stores

UNKNOWN_USER = 2
"""Exit status, as of what argparse refuses."""


def is_user_stored(stores: Stores, app_id: str, user_id: str) -> bool:
    """Return True if anything is stored of a user; else say so, before a file is begun that would be of nobody.

    Raises:
        DependencyDown: the database does not answer.
        IdentityConflict: the id is a subject that is linked to another user, whom the message names.
    """
    import asyncio

    from syncbeat_server.app import is_stored

    if asyncio.run(is_stored(stores, app_id, user_id)):
        return True
    say_unknown(app_id, user_id, "Nothing was written")
    return False


def say_unknown(app_id: str, user_id: str, outcome: str) -> None:
    """Say on standard error that nothing is stored of a user, and what was done."""
    print(
        f"syncbeat-server: nothing is stored of a user {user_id!r} of app {app_id!r}: is the id mistyped? {outcome}",
        file=sys.stderr,
    )
