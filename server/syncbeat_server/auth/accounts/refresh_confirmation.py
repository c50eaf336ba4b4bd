"""Takes the first use of a fresh access token as proof that the refresh token issued with it has arrived (ADR 23).

Until that proof, the parent of a session's current refresh token is accepted once more, since the answer of a refresh
may be lost. `sessions/rotation_and_reuse.py` decides by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from syncbeat_server.auth.model import AccountKey, AccountStatus
from syncbeat_server.auth.store import sessions
from syncbeat_server.storage.postgres.database import Connection


def confirms_refresh(counter: int, status: AccountStatus) -> bool:
    """Tell if an access token proves for the first time that the refresh token issued with it has arrived.

    `counter` is the number that both tokens carry.
    """
    return status.session_active and counter > status.confirmed


async def record_confirmations(
    conn: Connection, uses: Sequence[tuple[AccountKey, int]], statuses: Sequence[AccountStatus]
) -> list[AccountStatus]:
    """Record what the uses of access tokens confirm, each with its counter and the status that was read for it.

    Returns the statuses as they are from now on.
    """
    confirmed = {
        (key.app_id, key.session_id): counter
        for (key, counter), status in zip(uses, statuses, strict=True)
        if confirms_refresh(counter, status)
    }
    if confirmed:
        await sessions.confirm_counters(conn, [(*session, counter) for session, counter in confirmed.items()])
    return [
        replace(status, confirmed=max(counter, status.confirmed)) if status.session_active else status
        for (_, counter), status in zip(uses, statuses, strict=True)
    ]
