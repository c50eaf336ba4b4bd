"""Devices and memberships: who has what, and what follows when a token moves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from syncbeat_server.directory import device_locks, store, time_zones
from syncbeat_server.directory.model import MAX_SCOPES, Device, Holder, Member, Preferences, Registration
from syncbeat_server.errors import AccessDenied, FieldViolation, InvalidRequest, NotFound, RateLimited
from syncbeat_server.storage.postgres.database import Connection, Database, RowOwner, take_user_role

MAX_DEVICES = 100
MAX_MEMBERS = 10_000
MAX_MOVES_A_DAY = 10
MAX_RELEASES_A_DAY = 100
"""How often a refused move takes a token from who has it: far more often than people share a phone, and yet so seldom
that who knows another's token cannot keep it from its owner for ever."""


class CancelWaiting(Protocol):
    """Cancels what waits to be pushed to a device, in the caller's transaction; the push feature's part."""

    async def __call__(self, conn: Connection, app_id: str, user_id: str, device_id: str, *, stays: bool) -> None:
        """`stays`: the device is not deleted in this transaction."""
        ...


@dataclass(frozen=True, slots=True)
class _Move:
    """A token's move from another device. `may_release`: it is taken from there even if the move is refused."""

    digest: bytes
    previous: Holder
    may_release: bool
    too_often: bool


class DirectoryService:
    """Registers devices and keeps the members of scopes. `by_user`: an end user calls, who sees only its own rows."""

    def __init__(
        self,
        database: Database,
        cancel_waiting: CancelWaiting,
        members_changed: Callable[[str, Sequence[str]], None],
        devices_changed: Callable[[str, Sequence[str]], None],
    ) -> None:
        """After its commit `members_changed(app, users)` is told of each change of membership, and
        `devices_changed(app, users)` of each of a device."""
        self._database = database
        self._cancel_waiting = cancel_waiting
        self._members_changed = members_changed
        self._devices_changed = devices_changed

    async def register(self, device: Registration, caller: str, *, by_user: bool) -> Device:
        """Register a device; its token moves here from wherever it was, and what waited there is cancelled.

        A refused move takes the token from its former device all the same: whoever holds it in hands now is not to see
        what is for the former user.

        Raises:
            RateLimited: the token moves too often, or the user has too many devices.
        """
        if not time_zones.is_known(
            device.time_zone
        ):  # newer than our database perhaps: no reason to push nothing to it
            device = replace(device, time_zone="")
        concerned = [device.user_id]
        async with self._database.transaction() as conn:
            await store.lock_registering(conn, device.app_id, device.user_id, device.device_id)
            digest = _digest(device.registration_token)
            move = None if digest is None else await _find_move(conn, device, digest)
            refusal = await _refusal(conn, device, move)
            if move is not None and (refusal is None or move.may_release):
                await self._take_away(conn, device, move, caller, refused=refusal is not None)
                concerned.append(move.previous.user_id)
            outcome = refusal or await self._write(conn, device, digest, by_user=by_user)
        self._devices_changed(device.app_id, concerned)
        if isinstance(outcome, RateLimited):  # not before the commit: the former device has lost the token
            raise outcome
        return outcome

    async def _write(self, conn: Connection, device: Registration, digest: bytes | None, *, by_user: bool) -> Device:
        if digest is None:  # it gets no push from now on
            await device_locks.lock_devices(conn, device.app_id, device.user_id, device.device_id)
            await self._cancel_waiting(conn, device.app_id, device.user_id, device.device_id, stays=True)
        if by_user:
            await take_user_role(conn, RowOwner(device.app_id, device.user_id))
        return await store.upsert_device(conn, device, digest)

    async def _take_away(
        self, conn: Connection, device: Registration, move: _Move, caller: str, *, refused: bool
    ) -> None:
        """Take the token from the device that has it, or had it until a refusal."""
        await store.record_move(conn, device, move.digest, move.previous, caller, refused=refused)
        if await store.release_token(conn, device.app_id, move.previous, move.digest):
            await self._cancel_waiting(conn, device.app_id, *move.previous, stays=True)

    async def unregister(self, app_id: str, user_id: str, device_id: str, *, by_user: bool) -> None:
        """Forget a device and cancel what waits for it. Raises AccessDenied (a user) or NotFound (a service)."""
        async with self._database.transaction() as conn:
            # One that is registered from now on is another one.
            if not await device_locks.lock_devices(conn, app_id, user_id, device_id):
                raise _absent(by_user=by_user)
            await self._cancel_waiting(conn, app_id, user_id, device_id, stays=False)
            await device_locks.lock_keys(conn, app_id, user_id, device_id)
            if by_user:
                await take_user_role(conn, RowOwner(app_id, user_id))
            if not await device_locks.delete_devices(conn, app_id, user_id, device_id):
                raise _absent(by_user=by_user)
        self._devices_changed(app_id, [user_id])

    async def set_preferences(self, app_id: str, user_id: str, wanted: Preferences, *, by_user: bool) -> Preferences:
        """Replace what a user wants to be spared. Raises InvalidRequest: the time zone is unknown."""
        zone = "" if wanted.quiet_hours is None else wanted.quiet_hours.zone
        if zone and not time_zones.is_known(zone):
            raise InvalidRequest(
                FieldViolation("quiet_hours.time_zone", "neither a time zone of the IANA database nor an offset")
            )
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await store.set_preferences(conn, app_id, user_id, wanted)

    async def preferences(self, app_id: str, user_id: str, *, by_user: bool) -> Preferences:
        """What a user wants to be spared; the defaults when nothing was set."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await store.find_preferences(conn, app_id, user_id) or Preferences()

    async def device(self, app_id: str, user_id: str, device_id: str, *, by_user: bool) -> Device:
        """One device. Raises AccessDenied (a user) or NotFound (a service) when it is not there."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            found = await store.find_device(conn, app_id, user_id, device_id)
        if found is None:
            raise _absent(by_user=by_user)
        return found

    async def devices(self, app_id: str, user_id: str, after: str, limit: int, *, by_user: bool) -> list[Device]:
        """A user's devices by id."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await store.list_devices(conn, app_id, user_id, after, limit)

    async def add_members(self, app_id: str, scope: str, members: Sequence[Member]) -> int:
        """Add members to a scope, which is made when it is not there; how many it has then.

        Raises:
            RateLimited: the scope would have too many, or one of them would be in too many scopes.
        """
        newest = {member.user_id: member for member in members}
        async with self._database.transaction() as conn:
            await store.lock_scope(conn, app_id, scope)
            joined = await store.add_members(conn, app_id, scope, list(newest.values()))
            count = await store.count_members(conn, app_id, scope)
            if count > MAX_MEMBERS:
                raise RateLimited(f"a scope has at most {MAX_MEMBERS} members")
            await _check_scopes(conn, app_id, joined)
        self._members_changed(app_id, list(newest))
        return count

    async def remove_members(self, app_id: str, scope: str, user_ids: Sequence[str]) -> int:
        """Take members out of a scope; how many were in it. Raises NotFound when there is no such scope."""
        async with self._database.transaction() as conn:
            if not await store.known_scopes(conn, [(app_id, scope)]):
                raise NotFound("there is no such scope")
            removed = await store.remove_members(conn, app_id, scope, user_ids)
        self._members_changed(app_id, user_ids)
        return removed

    async def members(self, app_id: str, scope: str, after: str, limit: int) -> list[Member]:
        """A scope's members by user. Raises NotFound when there is no such scope."""
        async with self._database.connection() as conn:
            if not await store.known_scopes(conn, [(app_id, scope)]):
                raise NotFound("there is no such scope")
            return await store.list_members(conn, app_id, scope, after, limit)

    async def scopes(self, app_id: str, user_id: str, after: str, limit: int, *, by_user: bool) -> list[Member]:
        """A user's memberships by scope."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await store.list_scopes(conn, app_id, user_id, after, limit)


async def _check_scopes(conn: Connection, app_id: str, joined: Sequence[str]) -> None:
    counts = await store.count_scopes(conn, app_id, joined, MAX_SCOPES)
    if max(counts.values(), default=0) > MAX_SCOPES // 2:
        # Who adds the same users to other scopes now is not seen by this count. Of those who are far from the limit it
        # does not matter: so many calls are never under way.
        await store.lock_memberships(conn, app_id)
        counts = await store.count_scopes(conn, app_id, joined, MAX_SCOPES)
    full = sorted(user_id for user_id, count in counts.items() if count > MAX_SCOPES)
    if full:
        raise RateLimited(f"a user is a member of at most {MAX_SCOPES} scopes", user_id=full[0])


def _digest(token: str) -> bytes | None:
    return hashlib.sha256(token.encode()).digest() if token else None


async def _find_move(conn: Connection, device: Registration, digest: bytes) -> _Move | None:
    """Lock a token, and say from where it would move here; None: it was nobody else's.

    A token that a refusal took away is still its device's: that one gets it back, to others it moves.
    """
    await store.lock_token(conn, device.app_id, digest)
    own, holder = Holder(device.user_id, device.device_id), await store.lock_mover(conn, device, digest)
    if holder == own:
        return None
    moves = await store.recent_moves(conn, device.app_id, digest)
    refused = [move for move in moves if move.refused]
    if holder is None and any(move.previous == own for move in refused):
        return None
    previous = holder or next((move.previous for move in refused if move.without), None)
    if previous is None:
        return None
    return _Move(
        digest,
        previous,
        may_release=holder is not None and len(refused) < MAX_RELEASES_A_DAY,
        too_often=len(moves) - len(refused) >= MAX_MOVES_A_DAY,
    )


async def _refusal(conn: Connection, device: Registration, move: _Move | None) -> RateLimited | None:
    if move is not None and move.too_often:
        return RateLimited("this registration token moves between devices too often", retry_after_s=3600.0)
    if await store.count_devices(conn, device.app_id, device.user_id, device.device_id) >= MAX_DEVICES:
        return RateLimited(f"a user has at most {MAX_DEVICES} devices")
    return None


def _owner(app_id: str, user_id: str, *, by_user: bool) -> RowOwner | None:
    return RowOwner(app_id, user_id) if by_user else None


def _absent(*, by_user: bool) -> AccessDenied | NotFound:
    # To a user, another user's device and one that does not exist look the same.
    if by_user:
        return AccessDenied("not a registered device of this user")
    return NotFound("this device is not registered")
