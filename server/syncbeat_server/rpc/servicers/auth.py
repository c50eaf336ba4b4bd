"""AuthService on the wire."""

from __future__ import annotations

from google.protobuf.message import Message

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat_server.auth.accounts.cluster_token_cache import ClusterTokenCache, ProcessStats
from syncbeat_server.auth.accounts.token_cache import CacheStats
from syncbeat_server.auth.model import PrincipalKind, Session
from syncbeat_server.auth.sessions.service import SessionRequest, SessionService
from syncbeat_server.errors import AccessDenied, FieldViolation, InvalidRequest
from syncbeat_server.rpc.call_context import Call
from syncbeat_server.rpc.convert import content_hash, next_page_token, page_size, page_start, timestamp


class AuthServicer:
    """Converts, calls, converts."""

    def __init__(self, sessions: SessionService, caches: ClusterTokenCache) -> None:
        self._sessions = sessions
        self._caches = caches

    async def CreateSession(self, request: pb.CreateSessionRequest, call: Call) -> Message:
        """A session for a user whom the calling service has signed in."""
        tokens = await self._sessions.create(
            SessionRequest(
                app_id=call.app(request.app_id),
                user_id=request.user_id,
                device_id=request.device_id,
                claims=dict(request.claims),
                caller=call.caller,
                request_id=request.request_id,
                content_hash=content_hash(request),
            )
        )
        return pb.CreateSessionResponse(
            session_id=tokens.session_id,
            access_token=tokens.access_token,
            access_expire_time=timestamp(tokens.access_expires_at),
            refresh_token=tokens.refresh_token,
            refresh_expire_time=timestamp(tokens.refresh_expires_at),
            replayed=tokens.replayed,
        )

    async def RefreshSession(self, request: pb.RefreshSessionRequest, call: Call) -> Message:
        """The next tokens of a session."""
        tokens = await self._sessions.refresh(request.refresh_token, call.address)
        return pb.RefreshSessionResponse(
            session_id=tokens.session_id,
            access_token=tokens.access_token,
            access_expire_time=timestamp(tokens.access_expires_at),
            refresh_token=tokens.refresh_token,
            refresh_expire_time=timestamp(tokens.refresh_expires_at),
        )

    async def RevokeSession(self, request: pb.RevokeSessionRequest, call: Call) -> Message:
        """End a session."""
        await self._sessions.revoke(
            call.app(request.app_id), call.user(request.user_id), request.session_id, by_user=call.is_user
        )
        return pb.RevokeSessionResponse()

    async def RevokeUser(self, request: pb.RevokeUserRequest, call: Call) -> Message:
        """Make every token of a user that was issued so far dead."""
        revoked_at, count = await self._sessions.revoke_user(call.app(request.app_id), request.user_id, request.reason)
        return pb.RevokeUserResponse(revoke_time=timestamp(revoked_at), revoked_session_count=count)

    async def ListSessions(self, request: pb.ListSessionsRequest, call: Call) -> Message:
        """A user's sessions."""
        app_id, user_id, size = call.app(request.app_id), call.user(request.user_id), page_size(request)
        found = await self._sessions.list_sessions(
            app_id, user_id, page_start(request, call, app_id, user_id) or "", size + 1, by_user=call.is_user
        )
        last = found[size - 1].session_id if len(found) > size else None
        return pb.ListSessionsResponse(
            sessions=[_session(session) for session in found[:size]],
            next_page_token=next_page_token(call, last, app_id, user_id),
        )

    async def InvalidateTokenCache(self, request: pb.InvalidateTokenCacheRequest, call: Call) -> Message:
        """Check tokens anew, everywhere."""
        app_id = call.app(request.app_id)
        if request.all and call.principal.kind is not PrincipalKind.ADMIN:
            raise AccessDenied("only an operator may invalidate all tokens")
        if request.all:
            count = await self._caches.invalidate_app(app_id)
        elif request.user_id or request.session_id:
            count = await self._caches.invalidate(app_id, request.user_id, request.session_id)
        else:
            raise InvalidRequest(FieldViolation("user_id", "required, unless session_id or all is set"))
        return pb.InvalidateTokenCacheResponse(invalidated_count=count)

    async def GetTokenCacheStats(self, request: pb.GetTokenCacheStatsRequest, call: Call) -> Message:
        """How well the caches of checked tokens work."""
        call.app(request.app_id)
        processes = await self._caches.stats()
        return pb.GetTokenCacheStatsResponse(
            total=_stats("", _sum(processes)), processes=[_stats(one.process, one.stats) for one in processes]
        )


def _session(session: Session) -> pb.Session:
    return pb.Session(
        session_id=session.session_id,
        user_id=session.user_id,
        device_id=session.device_id,
        create_time=timestamp(session.created_at),
        refresh_time=timestamp(session.refreshed_at),
        expire_time=timestamp(session.expires_at),
    )


def _sum(processes: list[ProcessStats]) -> CacheStats:
    return CacheStats(
        size=sum(one.stats.size for one in processes),
        hits=sum(one.stats.hits for one in processes),
        misses=sum(one.stats.misses for one in processes),
        evictions=sum(one.stats.evictions for one in processes),
    )


def _stats(process: str, stats: CacheStats) -> pb.TokenCacheStats:
    asked = stats.hits + stats.misses
    return pb.TokenCacheStats(
        process=process,
        size=stats.size,
        hits=stats.hits,
        misses=stats.misses,
        hit_rate=stats.hits / asked if asked else 0.0,
        evictions=stats.evictions,
    )
