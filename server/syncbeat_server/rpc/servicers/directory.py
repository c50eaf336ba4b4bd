"""DirectoryService on the wire."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import directory_service_pb2 as pb
from syncbeat_server.directory.model import Device, Member, MemberRole, Platform, Preferences, QuietHours, Registration
from syncbeat_server.directory.service import DirectoryService
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.rpc.convert import enum_member, next_page_token, page_size, page_start, timestamp


class DirectoryServicer:
    """Converts, calls, converts."""

    def __init__(self, directory: DirectoryService, users: UserLifecycle) -> None:
        self._directory = directory
        self._users = users

    async def RegisterDevice(self, request: pb.RegisterDeviceRequest, call: Call) -> Message:
        """Register a device, or change its registration."""
        platform = enum_member(Platform, pb.Platform, "PLATFORM_", request.platform)
        if platform is None:
            raise AssertionError("the contract requires a platform")
        registration = Registration(
            app_id=call.app(request.app_id),
            user_id=call.user(request.user_id),
            device_id=request.device_id,
            platform=platform,
            registration_token=request.registration_token,
            time_zone=request.time_zone,
            locale=request.locale,
        )
        device = await self._directory.register(registration, call.caller, by_user=call.is_user)
        return pb.RegisterDeviceResponse(device=_device(device))

    async def UnregisterDevice(self, request: pb.UnregisterDeviceRequest, call: Call) -> Message:
        """Forget a device."""
        await self._directory.unregister(
            call.app(request.app_id), call.user(request.user_id), request.device_id, by_user=call.is_user
        )
        return pb.UnregisterDeviceResponse()

    async def GetDevice(self, request: pb.GetDeviceRequest, call: Call) -> Message:
        """One device."""
        device = await self._directory.device(
            call.app(request.app_id), call.user(request.user_id), request.device_id, by_user=call.is_user
        )
        return pb.GetDeviceResponse(device=_device(device))

    async def ListDevices(self, request: pb.ListDevicesRequest, call: Call) -> Message:
        """A user's devices."""
        app_id, user_id, size = call.app(request.app_id), call.user(request.user_id), page_size(request)
        found = await self._directory.devices(
            app_id, user_id, page_start(request, call, app_id, user_id) or "", size + 1, by_user=call.is_user
        )
        last = found[size - 1].device_id if len(found) > size else None
        return pb.ListDevicesResponse(
            devices=[_device(device) for device in found[:size]],
            next_page_token=next_page_token(call, last, app_id, user_id),
        )

    async def SetPreferences(self, request: pb.SetPreferencesRequest, call: Call) -> Message:
        """What a user wants to be spared, from now on."""
        given, quiet = request.quiet_hours, None
        if request.HasField("quiet_hours"):
            quiet = QuietHours(given.start_minute, given.end_minute, given.time_zone)
        wanted = Preferences(
            quiet,
            request.max_per_day if request.HasField("max_per_day") else None,
            tuple(dict.fromkeys(request.muted_types)),
        )
        kept = await self._directory.set_preferences(
            call.app(request.app_id), call.user(request.user_id), wanted, by_user=call.is_user
        )
        return pb.SetPreferencesResponse(preferences=_preferences(kept))

    async def GetPreferences(self, request: pb.GetPreferencesRequest, call: Call) -> Message:
        """What a user wants to be spared."""
        found = await self._directory.preferences(
            call.app(request.app_id), call.user(request.user_id), by_user=call.is_user
        )
        return pb.GetPreferencesResponse(preferences=_preferences(found))

    async def AddScopeMembers(self, request: pb.AddScopeMembersRequest, call: Call) -> Message:
        """Add members to a scope."""
        members = [Member(request.scope, given.user_id, _role(given)) for given in request.members]
        count = await self._directory.add_members(call.app(request.app_id), request.scope, members)
        return pb.AddScopeMembersResponse(member_count=count)

    async def RemoveScopeMembers(self, request: pb.RemoveScopeMembersRequest, call: Call) -> Message:
        """Take members out of a scope."""
        removed = await self._directory.remove_members(call.app(request.app_id), request.scope, list(request.user_ids))
        return pb.RemoveScopeMembersResponse(removed_count=removed)

    async def ListScopeMembers(self, request: pb.ListScopeMembersRequest, call: Call) -> Message:
        """A scope's members."""
        app_id, size = call.app(request.app_id), page_size(request)
        found = await self._directory.members(
            app_id, request.scope, page_start(request, call, app_id, request.scope) or "", size + 1
        )
        last = found[size - 1].user_id if len(found) > size else None
        return pb.ListScopeMembersResponse(
            members=[_member(member) for member in found[:size]],
            next_page_token=next_page_token(call, last, app_id, request.scope),
        )

    async def ListScopes(self, request: pb.ListScopesRequest, call: Call) -> Message:
        """A user's memberships."""
        app_id, user_id, size = call.app(request.app_id), call.user(request.user_id), page_size(request)
        found = await self._directory.scopes(
            app_id, user_id, page_start(request, call, app_id, user_id) or "", size + 1, by_user=call.is_user
        )
        last = found[size - 1].scope if len(found) > size else None
        return pb.ListScopesResponse(
            scopes=[_membership(member) for member in found[:size]],
            next_page_token=next_page_token(call, last, app_id, user_id),
        )

    async def DisableUser(self, request: pb.DisableUserRequest, call: Call) -> Message:
        """Shut a user out."""
        await self._users.disable(call.app(request.app_id), request.user_id)
        return pb.DisableUserResponse()

    async def EnableUser(self, request: pb.EnableUserRequest, call: Call) -> Message:
        """Let a user in."""
        await self._users.enable(call.app(request.app_id), request.user_id)
        return pb.EnableUserResponse()

    async def DeleteUser(self, request: pb.DeleteUserRequest, call: Call) -> Message:
        """Erase a user."""
        erased = await self._users.delete(call.app(request.app_id), request.user_id)
        return pb.DeleteUserResponse(
            device_count=erased.devices,
            membership_count=erased.memberships,
            session_count=erased.sessions,
            cancelled_count=erased.cancelled,
        )


def _role(given: pb.ScopeMember) -> MemberRole:
    role = enum_member(MemberRole, pb.Role, "ROLE_", given.role)
    if role is None:
        raise AssertionError("the contract requires a role")
    return role


def _device(device: Device) -> pb.Device:
    return pb.Device(
        user_id=device.user_id,
        device_id=device.device_id,
        platform=pb.Platform.Value(f"PLATFORM_{device.platform}"),
        token_state=pb.TokenState.Value(f"TOKEN_STATE_{device.token_state}"),
        time_zone=device.time_zone,
        locale=device.locale,
        register_time=timestamp(device.registered_at),
        update_time=timestamp(device.updated_at),
    )


def _member(member: Member) -> pb.ScopeMember:
    return pb.ScopeMember(
        user_id=member.user_id, role=pb.Role.Value(f"ROLE_{member.role}"), add_time=timestamp(member.added_at)
    )


def _membership(member: Member) -> pb.ScopeMembership:
    return pb.ScopeMembership(
        scope=member.scope, role=pb.Role.Value(f"ROLE_{member.role}"), add_time=timestamp(member.added_at)
    )


def _preferences(kept: Preferences) -> pb.Preferences:
    told = pb.Preferences(
        max_per_day=kept.max_per_day, muted_types=kept.muted_types, update_time=timestamp(kept.updated_at)
    )
    if kept.quiet_hours is not None:
        told.quiet_hours.CopyFrom(
            pb.QuietHours(
                start_minute=kept.quiet_hours.start_minute,
                end_minute=kept.quiet_hours.end_minute,
                time_zone=kept.quiet_hours.zone,
            )
        )
    return told
