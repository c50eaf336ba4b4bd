"""Converts the messages of AuthService."""

from __future__ import annotations

from collections.abc import Sequence

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat_server.auth.accounts.cluster_token_cache import ProcessStats
from syncbeat_server.auth.accounts.token_cache import CacheStats
from syncbeat_server.auth.model import Session, SessionTokens
from syncbeat_server.auth.sessions.service import SessionRequest
from syncbeat_server.rpc.convert.fields import content_hash, timestamp
from syncbeat_server.rpc.pipeline.call_context import Call


def session_request(request: pb.CreateSessionRequest, call: Call) -> SessionRequest:
    """Return the session that a request asks for."""
    return SessionRequest(
        app_id=call.app(request.app_id),
        user_id=request.user_id,
        device_id=request.device_id,
        claims=dict(request.claims),
        caller=call.caller,
        request_id=request.request_id,
        content_hash=content_hash(request),
    )


def created(tokens: SessionTokens) -> pb.CreateSessionResponse:
    """Return the answer to CreateSession."""
    return pb.CreateSessionResponse(
        session_id=tokens.session_id,
        access_token=tokens.access_token,
        access_expire_time=timestamp(tokens.access_expires_at),
        refresh_token=tokens.refresh_token,
        refresh_expire_time=timestamp(tokens.refresh_expires_at),
        replayed=tokens.replayed,
    )


def refreshed(tokens: SessionTokens) -> pb.RefreshSessionResponse:
    """Return the answer to RefreshSession."""
    return pb.RefreshSessionResponse(
        session_id=tokens.session_id,
        access_token=tokens.access_token,
        access_expire_time=timestamp(tokens.access_expires_at),
        refresh_token=tokens.refresh_token,
        refresh_expire_time=timestamp(tokens.refresh_expires_at),
    )


def session_list(sessions: Sequence[Session], next_page_token: str) -> pb.ListSessionsResponse:
    """Return the answer to ListSessions."""
    return pb.ListSessionsResponse(sessions=map(_session, sessions), next_page_token=next_page_token)


def cache_stats(processes: Sequence[ProcessStats]) -> pb.GetTokenCacheStatsResponse:
    """Return the answer to GetTokenCacheStats: the figures of each process and their sum."""
    stats = [one.stats for one in processes]
    total = CacheStats(
        size=sum(one.size for one in stats),
        hits=sum(one.hits for one in stats),
        misses=sum(one.misses for one in stats),
        evictions=sum(one.evictions for one in stats),
    )
    return pb.GetTokenCacheStatsResponse(
        total=_stats("", total), processes=[_stats(one.process, one.stats) for one in processes]
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


def _stats(process: str, stats: CacheStats) -> pb.TokenCacheStats:
    lookups = stats.hits + stats.misses
    return pb.TokenCacheStats(
        process=process,
        size=stats.size,
        hits=stats.hits,
        misses=stats.misses,
        hit_rate=stats.hits / lookups if lookups else 0.0,
        evictions=stats.evictions,
    )
