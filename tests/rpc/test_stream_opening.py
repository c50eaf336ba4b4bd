"""A stream whose caller cannot be found out in time ends with a moment to come again."""

from __future__ import annotations

import asyncio

import pytest
from google.rpc import error_details_pb2

from syncbeat_server.errors import DependencyDown
from syncbeat_server.rpc.fastpath.shared_deadline import SharedDeadlines
from syncbeat_server.rpc.pipeline.error_status import to_status
from syncbeat_server.rpc.pipeline.handler_pipeline import complete_in_time
from syncbeat_server.rpc.pipeline.request_checks import ReadyCall
from tests.rpc.test_fastpath import SkippingLoop, hang

pytestmark = pytest.mark.unit


async def slow_checks() -> ReadyCall:
    await hang()
    raise AssertionError


async def opened() -> DependencyDown:
    with pytest.raises(DependencyDown, match="who calls") as raised:
        await complete_in_time(SharedDeadlines().within, slow_checks())
    return raised.value


def test_stream_opening_that_takes_too_long_has_retry_info() -> None:
    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        error = runner.run(opened())
    status = to_status(error, "r1")
    assert status.code == 14, "UNAVAILABLE, which clients call again"
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.0
