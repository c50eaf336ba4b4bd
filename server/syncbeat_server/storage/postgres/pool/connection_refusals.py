"""Tells why a server or pooler refused a connection: it has too many already, or it is going or coming back."""

from __future__ import annotations

import asyncpg

# "Too many connections" of the server, a login or a database (PostgreSQL documentation, appendix A). Poolers have no
# code of their own for it: PgBouncer answers 08P01, Supavisor XX000, each with one of these phrases.
_TOO_MANY = "53300"
_CODES_OF_POOLERS = ("08P01", "XX000")
_WORDS_OF_POOLERS = ("no more connections allowed", "max client", "maxclients", "too many connections")
# A server that shuts down or starts up; a pooler that cannot reach it.
_AWAY = ("57P", "08")


def is_too_many(error: asyncpg.PostgresError) -> bool:
    """Tell if the server, or a pooler before it, has as many connections as it allows."""
    message = str(error).lower()
    return error.sqlstate == _TOO_MANY or (
        error.sqlstate in _CODES_OF_POOLERS and any(words in message for words in _WORDS_OF_POOLERS)
    )


def is_away(error: asyncpg.PostgresError) -> bool:
    """Tell if there is no server to connect to for now."""
    return (error.sqlstate or "").startswith(_AWAY)
