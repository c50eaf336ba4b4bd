"""Decides if a registration token may move from one device to another, and limits how often."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from syncbeat_server.directory.model import Holder, Registration
from syncbeat_server.directory.store import token_move_rows
from syncbeat_server.ratelimit.catalog import MOVES_OF_TOKEN, RELEASES_OF_TOKEN
from syncbeat_server.ratelimit.policy.decision import Decision, decide
from syncbeat_server.storage.postgres.database import Connection


@dataclass(frozen=True, slots=True)
class Move:
    """Describes the move of a token from its previous holder.

    `may_release`: the token is taken from there even if the move is refused. `decision`: that of the limit of moves.
    """

    digest: bytes
    previous: Holder
    may_release: bool
    decision: Decision


def digest_of(token: str) -> bytes | None:
    """Return the digest under which a registration token is looked up; None for no token."""
    return hashlib.sha256(token.encode()).digest() if token else None


async def find_move(conn: Connection, device: Registration, digest: bytes) -> Move | None:
    """Lock a token and return the move that brings it to a device; None if no other device holds it.

    A token that a refusal took away still belongs to its device: to that one it returns without a move.
    """
    await token_move_rows.lock_token(conn, device.app_id, digest)
    own, holder = Holder(device.user_id, device.device_id), await token_move_rows.lock_holders(conn, device, digest)
    if holder == own:
        return None
    moves = await token_move_rows.recent_moves(conn, device.app_id, digest)
    refused = [move for move in moves if move.refused]
    if holder is None and any(move.previous == own for move in refused):
        return None
    previous = holder or next((move.previous for move in refused if move.without), None)
    if previous is None:
        return None
    return Move(
        digest,
        previous,
        may_release=holder is not None and decide(RELEASES_OF_TOKEN.bound, len(refused)).allowed,
        decision=decide(MOVES_OF_TOKEN.bound, len(moves) - len(refused)),
    )
