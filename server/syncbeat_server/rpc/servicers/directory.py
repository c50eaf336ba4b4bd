"""Serves DirectoryService: devices, preferences, scope members, tiers, and the life of users."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import directory_service_pb2 as pb
from syncbeat_server.directory.service import DirectoryService
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.ratelimit.user_tiers import UserTiers
from syncbeat_server.rpc.convert import directory as convert
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call


class DirectoryServicer:
    """Converts requests, calls the directory and the user lifecycle, converts their results."""

    def __init__(self, directory: DirectoryService, users: UserLifecycle, tiers: UserTiers) -> None:
        self._directory = directory
        self._users = users
        self._tiers = tiers

    async def RegisterDevice(self, request: pb.RegisterDeviceRequest, call: Call) -> Message:
        """Register a device, or change its registration."""
        registration = convert.registration(request, call)
        device = await self._directory.register(registration, call.caller, by_user=call.is_user)
        return pb.RegisterDeviceResponse(device=convert.device_message(device))

    async def UnregisterDevice(self, request: pb.UnregisterDeviceRequest, call: Call) -> Message:
        """Unregister a device."""
        await self._directory.unregister(
            call.app(request.app_id), call.user(request.user_id), request.device_id, by_user=call.is_user
        )
        return pb.UnregisterDeviceResponse()

    async def GetDevice(self, request: pb.GetDeviceRequest, call: Call) -> Message:
        """Return one device."""
        device = await self._directory.device(
            call.app(request.app_id), call.user(request.user_id), request.device_id, by_user=call.is_user
        )
        return pb.GetDeviceResponse(device=convert.device_message(device))

    async def ListDevices(self, request: pb.ListDevicesRequest, call: Call) -> Message:
        """List a user's devices."""
        app_id, user_id = call.app(request.app_id), call.user(request.user_id)
        page = Page.of(request, call, app_id, user_id)
        found = await self._directory.devices(app_id, user_id, page.after, page.limit, by_user=call.is_user)
        return convert.device_list(*page.split(found, lambda device: device.device_id))

    async def SetPreferences(self, request: pb.SetPreferencesRequest, call: Call) -> Message:
        """Replace a user's notification preferences."""
        kept = await self._directory.set_preferences(
            call.app(request.app_id), call.user(request.user_id), convert.preferences(request), by_user=call.is_user
        )
        return pb.SetPreferencesResponse(preferences=convert.preferences_message(kept))

    async def GetPreferences(self, request: pb.GetPreferencesRequest, call: Call) -> Message:
        """Return a user's notification preferences."""
        found = await self._directory.preferences(
            call.app(request.app_id), call.user(request.user_id), by_user=call.is_user
        )
        return pb.GetPreferencesResponse(preferences=convert.preferences_message(found))

    async def AddScopeMembers(self, request: pb.AddScopeMembersRequest, call: Call) -> Message:
        """Add members to a scope, or change their roles."""
        count = await self._directory.add_members(call.app(request.app_id), request.scope, convert.members(request))
        return pb.AddScopeMembersResponse(member_count=count)

    async def RemoveScopeMembers(self, request: pb.RemoveScopeMembersRequest, call: Call) -> Message:
        """Remove members from a scope."""
        removed = await self._directory.remove_members(call.app(request.app_id), request.scope, list(request.user_ids))
        return pb.RemoveScopeMembersResponse(removed_count=removed)

    async def ListScopeMembers(self, request: pb.ListScopeMembersRequest, call: Call) -> Message:
        """List the members of a scope."""
        app_id = call.app(request.app_id)
        page = Page.of(request, call, app_id, request.scope)
        found = await self._directory.members(app_id, request.scope, page.after, page.limit)
        return convert.member_list(*page.split(found, lambda member: member.user_id))

    async def ListScopes(self, request: pb.ListScopesRequest, call: Call) -> Message:
        """List the scopes that a user is a member of."""
        app_id, user_id = call.app(request.app_id), call.user(request.user_id)
        page = Page.of(request, call, app_id, user_id)
        found = await self._directory.scopes(app_id, user_id, page.after, page.limit, by_user=call.is_user)
        return convert.scope_list(*page.split(found, lambda member: member.scope))

    async def DisableUser(self, request: pb.DisableUserRequest, call: Call) -> Message:
        """Disable a user: its tokens are refused and its deliveries cancelled."""
        await self._users.disable(call.app(request.app_id), request.user_id)
        return pb.DisableUserResponse()

    async def EnableUser(self, request: pb.EnableUserRequest, call: Call) -> Message:
        """Enable a user again."""
        await self._users.enable(call.app(request.app_id), request.user_id)
        return pb.EnableUserResponse()

    async def DeleteUser(self, request: pb.DeleteUserRequest, call: Call) -> Message:
        """Erase a user, its devices, memberships and sessions, and cancel its deliveries."""
        erased = await self._users.delete(call.app(request.app_id), request.user_id)
        return pb.DeleteUserResponse(
            device_count=erased.devices,
            membership_count=erased.memberships,
            session_count=erased.sessions,
            cancelled_count=erased.cancelled,
        )

    async def SetUserTier(self, request: pb.SetUserTierRequest, call: Call) -> Message:
        """Grant a user a tier, or take the grant back."""
        tier = await self._tiers.set(call.app(request.app_id), request.user_id, request.tier)
        return pb.SetUserTierResponse(user_tier=convert.user_tier_message(tier))

    async def GetUserTier(self, request: pb.GetUserTierRequest, call: Call) -> Message:
        """Return a user's tier, as far as it is known without the user's token."""
        tier = await self._tiers.get(call.app(request.app_id), request.user_id)
        return pb.GetUserTierResponse(user_tier=convert.user_tier_message(tier))
