"""Tests that no bytes make a method answer with an internal error."""

from __future__ import annotations

from typing import Any, cast

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.process_rules import DEADLINE_S
from tests.support.rpc_server import IMPLEMENTED, Server, refusal_of
from tests.support.valid_requests import is_map

pytestmark = [pytest.mark.rpc, pytest.mark.asyncio(loop_scope="module")]

FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
SILENT = "WatchDeliveries"  # who is let in may have nothing to hear for ever; other streams begin with a checkpoint
SILENT_S = 1.0
TEXTS = st.one_of(st.sampled_from(["", "u", "s", "k", "{}", "é", "\0", "x" * 129]), st.text(max_size=20))


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
            return st.one_of(st.integers(-1, 5), st.integers(-(2**31), 2**31 - 1))
        case FieldDescriptor.CPPTYPE_INT64:
            return st.one_of(st.integers(-1, 5), st.integers(-(2**63), 2**63 - 1))
        case _:
            return TEXTS.filter(lambda text: text.isprintable() or text == "\0")


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor) -> Message:
    """A message whose fields are set or not, to values of their type."""
    made: Any = GetMessageClass(kind)()
    for field in kind.fields:
        if not draw(st.booleans()):
            continue
        value = getattr(made, field.name)
        if is_map(field):
            for key in draw(st.lists(TEXTS.filter(str.isprintable), max_size=2)):
                value[key] = key
        elif field.message_type is not None:
            for _ in range(draw(st.integers(0, 2)) if field.is_repeated else 1):
                (value.add() if field.is_repeated else value).MergeFrom(draw(messages(field.message_type)))
        elif field.is_repeated:
            value.extend(draw(st.lists(scalars(field), max_size=3)))
        else:
            setattr(made, field.name, draw(scalars(field)))
    return cast(Message, made)


BYTES = st.one_of(st.binary(max_size=64), st.sampled_from([b"\x0a\x01", b"\x12\x02\xff\xff", b"\x22\x00" * 600]))
REQUESTS = st.sampled_from(IMPLEMENTED).flatmap(
    lambda method: st.tuples(
        st.just(method), st.one_of(BYTES, messages(method.input_type).map(lambda made: made.SerializeToString()))
    )
)


# One server for all examples is what is wanted; how long one takes is no matter.
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(call=REQUESTS, by_user=st.booleans())
async def test_fuzzed_bytes_never_cause_an_internal_error(
    module_server: Server, call: tuple[MethodDescriptor, bytes], by_user: bool
) -> None:
    caller = module_server.user("u") if by_user else module_server.backend
    method, octets = call
    try:
        await caller.raw(method, octets, SILENT_S if method.name == SILENT else DEADLINE_S)
        return
    except grpc.aio.AioRpcError as caught:
        error = caught
    silent = method.name == SILENT and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert silent or refusal_of(error).code not in FAULTS
