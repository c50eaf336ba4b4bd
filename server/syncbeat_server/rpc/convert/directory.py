"""Converts the messages of DirectoryService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from syncbeat.v1 import directory_service_pb2 as pb
from syncbeat_server.directory.model import Device, Member, MemberRole, Platform, Preferences, QuietHours, Registration
from syncbeat_server.ratelimit.model import UserTier
from syncbeat_server.rpc.convert.fields import enum_member, timestamp
from syncbeat_server.rpc.pipeline.call_context import Call


def registration(request: pb.RegisterDeviceRequest, call: Call) -> Registration:
    """Return the registration of a request."""
    platform = enum_member(Platform, pb.Platform, "PLATFORM_", request.platform)
    if platform is None:
        raise AssertionError("the contract requires a platform")
    return Registration(
        app_id=call.app(request.app_id),
        user_id=call.user(request.user_id),
        device_id=request.device_id,
        platform=platform,
        registration_token=request.registration_token,
        time_zone=request.time_zone,
        locale=request.locale,
    )


def preferences(request: pb.SetPreferencesRequest) -> Preferences:
    """Return the preferences of a request: quiet hours, a daily maximum, and muted types without duplicates."""
    given, quiet_hours = request.quiet_hours, None
    if request.HasField("quiet_hours"):
        quiet_hours = QuietHours(given.start_minute, given.end_minute, given.time_zone)
    return Preferences(
        quiet_hours,
        request.max_per_day if request.HasField("max_per_day") else None,
        tuple(dict.fromkeys(request.muted_types)),
    )


def members(request: pb.AddScopeMembersRequest) -> list[Member]:
    """Return the members of a request."""
    return scope_members(request.scope, request.members)


def scope_members(scope: str, given: Iterable[pb.ScopeMember]) -> list[Member]:
    """Return members of a scope as they are to be added."""
    return [Member(scope, one.user_id, _role(one)) for one in given]


def device_message(device: Device) -> pb.Device:
    """Return a device as a message."""
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


def user_tier_message(tier: UserTier) -> pb.UserTier:
    """Return a user's tier as a message."""
    return pb.UserTier(
        tier=tier.name, source=pb.TierSource.Value(f"TIER_SOURCE_{tier.source}"), granted_tier=tier.stored
    )


def preferences_message(kept: Preferences) -> pb.Preferences:
    """Return a user's preferences as a message."""
    message = pb.Preferences(
        max_per_day=kept.max_per_day, muted_types=kept.muted_types, update_time=timestamp(kept.updated_at)
    )
    if kept.quiet_hours is not None:
        message.quiet_hours.CopyFrom(
            pb.QuietHours(
                start_minute=kept.quiet_hours.start_minute,
                end_minute=kept.quiet_hours.end_minute,
                time_zone=kept.quiet_hours.zone,
            )
        )
    return message


def device_list(devices: Sequence[Device], next_page_token: str) -> pb.ListDevicesResponse:
    """Return the answer to ListDevices."""
    return pb.ListDevicesResponse(devices=map(device_message, devices), next_page_token=next_page_token)


def member_list(found: Sequence[Member], next_page_token: str) -> pb.ListScopeMembersResponse:
    """Return the answer to ListScopeMembers."""
    return pb.ListScopeMembersResponse(members=map(_member, found), next_page_token=next_page_token)


def scope_list(found: Sequence[Member], next_page_token: str) -> pb.ListScopesResponse:
    """Return the answer to ListScopes."""
    return pb.ListScopesResponse(scopes=map(_membership, found), next_page_token=next_page_token)


def _role(given: pb.ScopeMember) -> MemberRole:
    role = enum_member(MemberRole, pb.Role, "ROLE_", given.role)
    if role is None:
        raise AssertionError("the contract requires a role")
    return role


def _member(member: Member) -> pb.ScopeMember:
    return pb.ScopeMember(
        user_id=member.user_id, role=pb.Role.Value(f"ROLE_{member.role}"), add_time=timestamp(member.added_at)
    )


def _membership(member: Member) -> pb.ScopeMembership:
    return pb.ScopeMembership(
        scope=member.scope, role=pb.Role.Value(f"ROLE_{member.role}"), add_time=timestamp(member.added_at)
    )
