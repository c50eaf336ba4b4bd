"""Manages devices, preferences and scope members, and moves registration tokens between devices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

from syncbeat_server.audit.model import AuditAction, user_subject
from syncbeat_server.audit.record import record
from syncbeat_server.directory.devices.token_moves import Move, digest_of, find_move
from syncbeat_server.directory.model import ChangeNotifier, Device, Member, Preferences, Registration
from syncbeat_server.directory.policy import time_zones
from syncbeat_server.directory.store import device_locks, devices, members, preferences, token_move_rows
from syncbeat_server.directory.user_limits import registration_refusal, require_free_scopes
from syncbeat_server.errors import AccessDenied, FieldReason, FieldViolation, InvalidRequest, NotFound, RateLimited
from syncbeat_server.ratelimit.catalog import MEMBERS_OF_SCOPE
from syncbeat_server.ratelimit.policy.decision import decide, refusal
from syncbeat_server.storage.postgres.database import Connection, Database, RowOwner, take_user_role


class CancelWaiting(Protocol):
    """Cancels the deliveries that wait for a device, in the caller's transaction; the push feature's part."""

    async def __call__(self, conn: Connection, app_id: str, user_id: str, device_id: str, *, stays: bool) -> None:
        """Cancel them; `stays`: the device is not deleted in this transaction."""
        ...


LockScope = Callable[[Connection, str, str], Awaitable[None]]
"""Creates the scope (app, name) if it is missing and locks it, in the caller's transaction; the sync feature's part."""


class DirectoryService:
    """Registers devices and keeps the members of scopes. `by_user`: an end user calls, who sees only its own rows."""

    def __init__(
        self, database: Database, cancel_waiting: CancelWaiting, lock_scope: LockScope, notifier: ChangeNotifier
    ) -> None:
        """`notifier` hears of each change of a membership or device after its commit."""
        self._database = database
        self._lock_scope = lock_scope
        self._cancel_waiting = cancel_waiting
        self._notifier = notifier

    async def register(self, device: Registration, caller: str, *, by_user: bool) -> Device:
        """Register a device; its token moves here from any other device, whose waiting deliveries are cancelled.

        A refused move takes the token from its former device all the same: the person who holds the device now must
        not see messages to the former user.

        Raises:
            RateLimited: the token moves too often, or the user has too many devices.
        """
        device = replace(device, time_zone=time_zones.known_or_blank(device.time_zone))
        users = [device.user_id]
        async with self._database.transaction() as conn:
            await devices.lock_registering(conn, device.app_id, device.user_id, device.device_id)
            digest = digest_of(device.registration_token)
            move = None if digest is None else await find_move(conn, device, digest)
            refusal = await registration_refusal(conn, device, move)
            if move is not None and (refusal is None or move.may_release):
                await self._release_token(conn, device, move, caller, refused=refusal is not None)
                users.append(move.previous.user_id)
            outcome = refusal or await self._upsert(conn, device, digest, by_user=by_user)
        self._notifier.devices_changed(device.app_id, users)
        if isinstance(outcome, RateLimited):  # not before the commit: the former device has lost the token
            raise outcome
        return outcome

    async def _upsert(self, conn: Connection, device: Registration, digest: bytes | None, *, by_user: bool) -> Device:
        if digest is None:  # it gets no push from now on
            await device_locks.lock_devices(conn, device.app_id, device.user_id, device.device_id)
            await self._cancel_waiting(conn, device.app_id, device.user_id, device.device_id, stays=True)
        if by_user:
            await take_user_role(conn, RowOwner(device.app_id, device.user_id))
        return await devices.upsert_device(conn, device, digest)

    async def _release_token(
        self, conn: Connection, device: Registration, move: Move, caller: str, *, refused: bool
    ) -> None:
        """Take the token from the device that holds it, and record the move."""
        await token_move_rows.record_move(conn, device, move.digest, move.previous, caller, refused=refused)
        await record(
            conn,
            device.app_id,
            AuditAction.TOKEN_MOVED,
            user_subject(move.previous.user_id),
            from_device_id=move.previous.device_id,
            to_user_id=device.user_id,
            to_device_id=device.device_id,
            refused=refused,
        )
        if await token_move_rows.release_token(conn, device.app_id, move.previous, move.digest):
            await self._cancel_waiting(conn, device.app_id, *move.previous, stays=True)

    async def unregister(self, app_id: str, user_id: str, device_id: str, *, by_user: bool) -> None:
        """Delete a device and cancel its waiting deliveries. Raises AccessDenied (a user) or NotFound (a service)."""
        async with self._database.transaction() as conn:
            # Locked first: a device that is registered under this id from now on is another one.
            if not await device_locks.lock_devices(conn, app_id, user_id, device_id):
                raise _absent(by_user=by_user)
            await self._cancel_waiting(conn, app_id, user_id, device_id, stays=False)
            await device_locks.lock_keys(conn, app_id, user_id, device_id)
            if by_user:
                await take_user_role(conn, RowOwner(app_id, user_id))
            if not await device_locks.delete_devices(conn, app_id, user_id, device_id):
                raise _absent(by_user=by_user)
        self._notifier.devices_changed(app_id, [user_id])

    async def set_preferences(self, app_id: str, user_id: str, wanted: Preferences, *, by_user: bool) -> Preferences:
        """Replace a user's notification preferences. Raises InvalidRequest: the time zone is unknown."""
        zone = "" if wanted.quiet_hours is None else wanted.quiet_hours.zone
        if zone and not time_zones.is_known(zone):
            raise InvalidRequest(
                FieldViolation(
                    "quiet_hours.time_zone",
                    "neither a time zone of the IANA database nor an offset",
                    FieldReason.UNKNOWN_VALUE,
                )
            )
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await preferences.set_preferences(conn, app_id, user_id, wanted)

    async def preferences(self, app_id: str, user_id: str, *, by_user: bool) -> Preferences:
        """Return a user's notification preferences, or the defaults if none were set."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await preferences.find_preferences(conn, app_id, user_id) or Preferences()

    async def device(self, app_id: str, user_id: str, device_id: str, *, by_user: bool) -> Device:
        """Return one device. Raises AccessDenied (a user) or NotFound (a service) if it is not registered."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            found = await devices.find_device(conn, app_id, user_id, device_id)
        if found is None:
            raise _absent(by_user=by_user)
        return found

    async def devices(self, app_id: str, user_id: str, after: str, limit: int, *, by_user: bool) -> list[Device]:
        """Return up to `limit` devices of a user in order of their ids, after the id `after`."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await devices.list_devices(conn, app_id, user_id, after, limit)

    async def add_members(self, app_id: str, scope: str, added: Sequence[Member]) -> int:
        """Add members to a scope, which is created if missing; return the number of its members.

        Raises:
            RateLimited: the scope would have too many members, or one of them too many scopes.
        """
        async with self._database.transaction() as conn:
            count = await join_scope(conn, self._lock_scope, app_id, scope, added)
        self._notifier.members_changed(app_id, list({member.user_id: None for member in added}))
        return count

    async def remove_members(self, app_id: str, scope: str, user_ids: Sequence[str]) -> int:
        """Remove members from a scope; return the number removed. Raises NotFound if there is no such scope."""
        async with self._database.transaction() as conn:
            removed = await leave_scope(conn, app_id, scope, user_ids)
        self._notifier.members_changed(app_id, user_ids)
        return removed

    async def members(self, app_id: str, scope: str, after: str, limit: int) -> list[Member]:
        """Return up to `limit` members of a scope in order of users, after `after`. Raises NotFound: no such scope."""
        async with self._database.connection() as conn:
            if not await members.known_scopes(conn, [(app_id, scope)]):
                raise NotFound("there is no such scope")
            return await members.list_members(conn, app_id, scope, after, limit)

    async def scopes(self, app_id: str, user_id: str, after: str, limit: int, *, by_user: bool) -> list[Member]:
        """Return up to `limit` memberships of a user in order of scopes, after `after`."""
        async with self._database.transaction(_owner(app_id, user_id, by_user=by_user)) as conn:
            return await members.list_scopes(conn, app_id, user_id, after, limit)


async def join_scope(conn: Connection, lock_scope: LockScope, app_id: str, scope: str, added: Sequence[Member]) -> int:
    """Add members to a scope in the caller's transaction; see `DirectoryService.add_members`."""
    newest = {member.user_id: member for member in added}
    await lock_scope(conn, app_id, scope)  # so that one call at a time counts its members
    joined = await members.add_members(conn, app_id, scope, list(newest.values()))
    count = await members.count_members(conn, app_id, scope)
    decision = decide(MEMBERS_OF_SCOPE.bound, count - len(joined), len(joined))
    if joined and not decision.allowed:
        raise refusal(f"a scope has at most {decision.limit} members", decision)
    await require_free_scopes(conn, app_id, joined)
    return count


async def leave_scope(conn: Connection, app_id: str, scope: str, user_ids: Sequence[str]) -> int:
    """Remove members from a scope in the caller's transaction; see `DirectoryService.remove_members`."""
    if not await members.known_scopes(conn, [(app_id, scope)]):
        raise NotFound("there is no such scope")
    return await members.remove_members(conn, app_id, scope, user_ids)


async def existing_scopes(conn: Connection, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of the (app, scope) that exist."""
    return await members.known_scopes(conn, keys) if keys else set()


def _owner(app_id: str, user_id: str, *, by_user: bool) -> RowOwner | None:
    return RowOwner(app_id, user_id) if by_user else None


def _absent(*, by_user: bool) -> AccessDenied | NotFound:
    # To a user, another user's device and one that does not exist look the same.
    if by_user:
        return AccessDenied("not a registered device of this user")
    return NotFound("this device is not registered")
