"""Serves AuthService: sessions, revocations, and the caches of checked tokens."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.message import Message

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache
from syncbeat_server.auth.model import PrincipalKind
from syncbeat_server.auth.sessions.service import SessionService
from syncbeat_server.errors import AccessDenied, FieldReason, FieldViolation, InvalidRequest
from syncbeat_server.events.identities.links import IdentityLinks
from syncbeat_server.rpc.convert import auth as convert
from syncbeat_server.rpc.convert.fields import seconds, timestamp
from syncbeat_server.rpc.convert.page_tokens import Page
from syncbeat_server.rpc.pipeline.call_context import Call

_LINK_TTL = timedelta(minutes=10)


class AuthServicer:
    """Converts requests, calls the session service and the token caches, converts their results."""

    def __init__(self, sessions: SessionService, links: IdentityLinks, caches: ClusterTokenCache) -> None:
        self._sessions = sessions
        self._links = links
        self._caches = caches

    async def CreateSession(self, request: pb.CreateSessionRequest, call: Call) -> Message:
        """Create a session for a user whom the calling service has signed in."""
        return convert.created(await self._sessions.create(convert.session_request(request, call)))

    async def RefreshSession(self, request: pb.RefreshSessionRequest, call: Call) -> Message:
        """Exchange a refresh token for the session's next tokens."""
        return convert.refreshed(await self._sessions.refresh(request.refresh_token, call.address))

    async def RevokeSession(self, request: pb.RevokeSessionRequest, call: Call) -> Message:
        """End a session."""
        await self._sessions.revoke(
            call.app(request.app_id), call.user(request.user_id), request.session_id, by_user=call.is_user
        )
        return pb.RevokeSessionResponse()

    async def RevokeUser(self, request: pb.RevokeUserRequest, call: Call) -> Message:
        """Revoke every token of a user that was issued so far."""
        revoked_at, count = await self._sessions.revoke_user(call.app(request.app_id), request.user_id, request.reason)
        return pb.RevokeUserResponse(revoke_time=timestamp(revoked_at), revoked_session_count=count)

    async def ListSessions(self, request: pb.ListSessionsRequest, call: Call) -> Message:
        """List a user's sessions, newest first."""
        app_id, user_id = call.app(request.app_id), call.user(request.user_id)
        page = Page.of(request, call, app_id, user_id)
        found = await self._sessions.list_sessions(app_id, user_id, page.after, page.limit, by_user=call.is_user)
        return convert.session_list(*page.split(found, lambda session: session.session_id))

    async def CreateLinkToken(self, request: pb.CreateLinkTokenRequest, call: Call) -> Message:
        """Make a token by which a subject of another issuer may become a user."""
        ttl = timedelta(seconds=seconds(request.ttl)) if request.HasField("ttl") else _LINK_TTL
        app_id = call.app(request.app_id)
        token, expires_at = await self._links.create_token(app_id, request.user_id, request.issuer, ttl)
        return pb.CreateLinkTokenResponse(link_token=token, expire_time=timestamp(expires_at))

    async def LinkIdentity(self, request: pb.LinkIdentityRequest, call: Call) -> Message:
        """Make the subject of an access token another name of a user."""
        linked = await self._links.link(request.access_token, request.link_token, call.address)
        return pb.LinkIdentityResponse(user_id=linked.user_id, already_linked=linked.already)

    async def InvalidateTokenCache(self, request: pb.InvalidateTokenCacheRequest, call: Call) -> Message:
        """Drop checked tokens from the caches of all processes: a user's, a session's, or all of an app."""
        app_id = call.app(request.app_id)
        if request.all and call.principal.kind is not PrincipalKind.ADMIN:
            raise AccessDenied("only an operator may invalidate all tokens")
        if request.all:
            count = await self._caches.invalidate_app(app_id)
        elif request.user_id or request.session_id:
            count = await self._caches.invalidate(app_id, request.user_id, request.session_id)
        else:
            raise InvalidRequest(
                FieldViolation("user_id", "required, unless session_id or all is set", FieldReason.REQUIRED)
            )
        return pb.InvalidateTokenCacheResponse(invalidated_count=count)

    async def GetTokenCacheStats(self, request: pb.GetTokenCacheStatsRequest, call: Call) -> Message:
        """Return hits and misses of the token caches of all processes."""
        call.app(request.app_id)
        return convert.cache_stats(await self._caches.stats())
