"""Lets a connection keep prepared statements, once it is known to lead to the server itself (ADR 114)."""

from __future__ import annotations

from typing import Any, cast

import asyncpg

MOST_STATEMENTS = 300
"""Kept by each connection that keeps any: all that a process uses, some 200; each is prepared anew after 5 minutes."""


def keep_prepared_statements(conn: asyncpg.Connection) -> None:
    """Keep the statements that this connection prepares, for its next callers."""
    driver = cast(Any, conn)  # it takes the size of its cache when it connects, before the server can be asked
    driver._stmt_cache.set_max_size(MOST_STATEMENTS)
    driver._stmt_cache_enabled = True
