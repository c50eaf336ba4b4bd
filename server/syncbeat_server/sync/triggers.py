"""How many of a scope's commits wake devices: where none does, no push can be relied on, however well it arrives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from syncbeat_server.storage.postgres import Connection

_WEIGHT = 0.1  # of each commit in the share: the latest ten or twenty count
_STEADY = 0.002


class Commits(NamedTuple):
    """Commits of one scope, and how many of them came with a trigger."""

    made: int
    triggered: int


async def note_triggers(conn: Connection, commits: Mapping[tuple[str, str], Commits]) -> None:
    """Count commits by (app, scope) into their scopes' shares, in the transaction that locked and wrote the scopes.

    A share that hardly moves is left as it is, so that this costs no row where all commits are alike.
    """
    await conn.execute(
        """UPDATE scopes s SET triggered_share = fresh.share
           FROM (SELECT k.app_id, k.scope,
                        coalesce(old.triggered_share + (k.share - old.triggered_share) * k.weight, k.share) AS share
                 FROM unnest($1::text[], $2::text[], $3::float8[], $4::float8[]) AS k (app_id, scope, share, weight)
                 JOIN scopes old USING (app_id, scope)) fresh
           WHERE (s.app_id, s.scope) = (fresh.app_id, fresh.scope)
             AND (s.triggered_share IS NULL OR abs(s.triggered_share - fresh.share) > $5)""",
        [app_id for app_id, _ in commits],
        [scope for _, scope in commits],
        [each.triggered / each.made for each in commits.values()],
        [1.0 - (1.0 - _WEIGHT) ** each.made for each in commits.values()],
        _STEADY,
    )
