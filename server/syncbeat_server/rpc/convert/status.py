"""Converts the status of a deployment to messages."""

from __future__ import annotations

from syncbeat.v1 import auth_service_pb2, push_service_pb2
from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.rpc.convert.fields import duration, timestamp
from syncbeat_server.rpc.convert.slo import objective_message
from syncbeat_server.status.model import (
    BreakerStatus,
    BuildStatus,
    CacheStatus,
    DeploymentStatus,
    LimitStatus,
    MethodStatus,
    MigrationStatus,
    PoolStatus,
    ProcessStatus,
    QueueStatus,
    StreamStatus,
)

_TOKENS = "tokens"


def status_message(status: DeploymentStatus) -> pb.GetStatusResponse:
    """Return the answer to GetStatus."""
    own, database = status.own, status.database
    pool = _pool(own.pool)
    pool.server_connections.update(database.connections)
    return pb.GetStatusResponse(
        pool=pool,
        breakers=map(_breaker, own.breakers),
        token_cache=next((_token_cache(own.name, one) for one in own.caches if one.name == _TOKENS), None),
        push_queue=None if status.queue is None else _queue(status.queue),
        streams=_streams(own.streams),
        rpcs=map(_method, own.methods),
        build_version=own.build.version,
        migrations=None if database.migrations is None else _migrations(database.migrations),
        process=own.name,
        start_time=timestamp(own.started_at),
        caches=map(_cache, own.caches),
        limits=None if own.limits is None else _limits(own.limits),
        build=_build(own.build),
        rpc_window=duration(own.window_s),
        processes=map(_process, status.processes),
        omitted_process_count=status.omitted,
        slos=map(objective_message, status.objectives),
    )


def _process(one: ProcessStatus) -> pb.ProcessStatus:
    return pb.ProcessStatus(
        process=one.name,
        role=one.role,
        start_time=timestamp(one.started_at),
        update_time=timestamp(one.written_at),
        build=_build(one.build),
        rpc_window=duration(one.window_s),
        rpcs=map(_method, one.methods),
        pool=_pool(one.pool),
        breakers=map(_breaker, one.breakers),
        caches=map(_cache, one.caches),
        limits=None if one.limits is None else _limits(one.limits),
        streams=_streams(one.streams),
    )


def _build(one: BuildStatus) -> pb.BuildStatus:
    return pb.BuildStatus(version=one.version, revision=one.revision, python=one.python, grpc=one.grpc)


def _method(one: MethodStatus) -> pb.RpcStatus:
    return pb.RpcStatus(
        method=one.method,
        rate=one.rate,
        error_rate=one.errors / one.calls if one.calls else 0.0,
        p50=duration(one.p50_s),
        p95=duration(one.p95_s),
        p99=duration(one.p99_s),
        calls=one.calls,
        errors=one.errors,
    )


def _pool(one: PoolStatus) -> pb.PoolStatus:
    return pb.PoolStatus(
        size=one.connections,
        idle=max(0, one.connections - one.in_use),
        in_use=one.in_use,
        waiters=one.waiters,
        acquire_p95=duration(one.acquire_p95_s),
        max_size=one.size,
    )


def _breaker(one: BreakerStatus) -> pb.BreakerStatus:
    return pb.BreakerStatus(
        name=one.name,
        state=pb.BreakerState.Value(f"BREAKER_STATE_{one.state}"),
        failures=one.failures,
        opened_time=timestamp(one.opened_at),
    )


def _cache(one: CacheStatus) -> pb.CacheStatus:
    return pb.CacheStatus(
        name=one.name,
        entries=one.entries,
        hits=one.hits,
        misses=one.misses,
        hit_rate=one.hit_rate,
        evictions=one.evictions,
    )


def _token_cache(process: str, one: CacheStatus) -> auth_service_pb2.TokenCacheStats:
    return auth_service_pb2.TokenCacheStats(
        process=process,
        size=one.entries,
        hits=one.hits,
        misses=one.misses,
        hit_rate=one.hit_rate,
        evictions=one.evictions,
    )


def _limits(one: LimitStatus) -> pb.LimitStatus:
    return pb.LimitStatus(
        shared=one.shared, buckets=one.buckets, refused=one.refused, local_decisions=one.local_decisions
    )


def _streams(one: StreamStatus) -> pb.StreamStatus:
    return pb.StreamStatus(open=one.open, signals_per_second=one.signals_per_s)


def _migrations(one: MigrationStatus) -> pb.MigrationStatus:
    return pb.MigrationStatus(applied=one.applied, known=one.known)


def _queue(one: QueueStatus) -> pb.QueueStatus:
    counts = [
        push_service_pb2.DeliveryCount(
            state=push_service_pb2.DeliveryState.Value(f"DELIVERY_STATE_{state}"), count=count
        )
        for state, count in sorted(one.counts.items())
    ]
    age = None if one.oldest_overdue_s is None else duration(one.oldest_overdue_s)
    return pb.QueueStatus(counts=counts, oldest_pending_age=age, truncated=one.truncated)
