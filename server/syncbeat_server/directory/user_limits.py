"""Limits the devices that a user may have, the scopes it may be a member of, and the moves of a registration token."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat_server.directory.devices.token_moves import Move
from syncbeat_server.directory.model import MAX_SCOPES, Registration
from syncbeat_server.directory.store import devices, members
from syncbeat_server.errors import RateLimited
from syncbeat_server.ratelimit.catalog import DEVICES_OF_USER, SCOPES_OF_USER
from syncbeat_server.ratelimit.policy.decision import decide, refusal
from syncbeat_server.storage.postgres.database import Connection


async def registration_refusal(conn: Connection, device: Registration, move: Move | None) -> RateLimited | None:
    """Return the error of a registration that exceeds a limit; None if it is allowed."""
    if move is not None and not move.decision.allowed:
        return refusal("this registration token moves between devices too often", move.decision)
    others = await devices.count_devices(conn, device.app_id, device.user_id, device.device_id)
    decision = decide(DEVICES_OF_USER.bound, others)
    return None if decision.allowed else refusal(f"a user has at most {decision.limit} devices", decision)


async def require_free_scopes(conn: Connection, app_id: str, joined: Sequence[str]) -> None:
    """Check that the users who are to join a scope are members of few enough others. Raises RateLimited."""
    counts = await members.count_scopes(conn, app_id, joined, MAX_SCOPES)
    if max(counts.values(), default=0) > MAX_SCOPES // 2:
        # This count misses calls that add the same users to other scopes now. For users far from the limit that does
        # not matter: so many calls are never under way.
        await members.lock_memberships(conn, app_id)
        counts = await members.count_scopes(conn, app_id, joined, MAX_SCOPES)
    found = {user_id: decide(SCOPES_OF_USER.bound, count - 1) for user_id, count in sorted(counts.items())}
    for user_id, decision in found.items():
        if not decision.allowed:
            raise refusal(f"a user is a member of at most {decision.limit} scopes", decision, user_id=user_id)
