"""Each module of `rpc/fastpath` does the same as the plain version that it stands for."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from syncbeat.v1 import core_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_server.rpc.contract.options import rules_of
from syncbeat_server.rpc.fastpath.compiled_validator import compile_fast_validator
from syncbeat_server.rpc.fastpath.hint_message import HintAnswerEncoder, hint_answer, hint_message
from syncbeat_server.rpc.fastpath.request_batcher import RequestBatcher
from syncbeat_server.rpc.fastpath.shared_deadline import SharedDeadlines
from syncbeat_server.rpc.fastpath.time_fields import set_duration, set_timestamp, set_unix_time
from syncbeat_server.rpc.server import CONTRACT
from syncbeat_server.rpc.validation.message_validator import compile_validator
from syncbeat_server.rpc.validation.value_checks import max_bytes_of
from syncbeat_server.sync.model import Cursor, Hint, Priority

pytestmark = pytest.mark.unit

Result = TypeVar("Result")
Outcome = tuple[str, object]
Within = Callable[[float, Coroutine[Any, Any, str]], Awaitable[str]]

moments = st.datetimes(timezones=st.just(UTC))
spans = st.floats(-1e6, 1e9)


# -------------------------------------------------------------------------------------------------- compiled_validator


def texts(field: FieldDescriptor) -> st.SearchStrategy[str]:
    """Texts at and around the bounds of a field: its size in bytes, control characters, what is not ASCII."""
    most = max_bytes_of(rules_of(field))
    edges = ["", " ", "a", "\x00", "\x1f", "\x7f", "\n", "\t", "é", "\u2028", "{}", "[1e999]", "{"]
    edges += [letter * count for letter in "aé" for count in (most // 2, most // 2 + 1, most, most + 1)]
    return st.one_of(st.sampled_from(edges), st.text(max_size=8))


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_ENUM:
            return st.one_of(st.integers(-1, 5), st.integers(-(2**31), 2**31 - 1))
        case FieldDescriptor.CPPTYPE_INT64:
            return st.one_of(st.integers(-1, 5), st.integers(-(2**63), 2**63 - 1))
        case _:
            return texts(field)


@st.composite
def messages(draw: st.DrawFn, kind: Descriptor) -> Message:
    made: Any = GetMessageClass(kind)()
    for field in kind.fields:
        if not draw(st.booleans()):
            continue
        value, inner = getattr(made, field.name), field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            value.update(draw(st.dictionaries(texts(field), texts(field), max_size=2)))
        elif inner is not None:
            for _ in range(draw(st.integers(0, 2)) if field.is_repeated else 1):
                (value.add() if field.is_repeated else value).MergeFrom(draw(messages(inner)))
        elif field.is_repeated:
            value.extend(draw(st.lists(scalars(field), max_size=3)))
        else:
            setattr(made, field.name, draw(scalars(field)))
    return cast(Message, made)


REQUESTS = [method.input_type for service in CONTRACT for method in service.methods]


@settings(max_examples=400)
@given(st.sampled_from(REQUESTS).flatmap(messages))
def test_compiled_validator_finds_what_the_field_rules_find(request_: Message) -> None:
    kind = cast(Descriptor, request_.DESCRIPTOR)
    assert list(compile_fast_validator(kind)(request_)) == list(compile_validator(kind)(request_))


def test_compiled_validator_is_tried_on_requests_with_and_without_faults() -> None:
    """Else the property above would hold of any two validators."""
    fast = compile_fast_validator(pb.GetHintRequest.DESCRIPTOR)
    assert not list(fast(pb.GetHintRequest(device_id="phone")))
    assert [fault.path for fault in fast(pb.GetHintRequest(device_id="a" * 129))] == ["device_id"]
    assert [fault.path for fault in fast(pb.GetHintRequest(device_id="a\x1f"))] == ["device_id"]


# ------------------------------------------------------------------------------------------- hint_message, time_fields


@given(moments)
def test_time_fields_set_a_timestamp_like_from_datetime(moment: datetime) -> None:
    fast, plain = Timestamp(), Timestamp()
    set_timestamp(fast, moment)
    plain.FromDatetime(moment)
    assert fast == plain


@given(st.floats(-1e9, 1e11))
def test_time_fields_set_a_unix_time_like_from_microseconds(at: float) -> None:
    fast, plain = Timestamp(), Timestamp()
    set_unix_time(fast, at)
    plain.FromMicroseconds(round(at * 1e6))
    assert fast == plain


@given(spans)
def test_time_fields_set_a_duration_like_from_microseconds(span_s: float) -> None:
    fast, plain = Duration(), Duration()
    set_duration(fast, span_s)
    plain.FromMicroseconds(round(max(0.0, span_s) * 1e6))
    assert fast == plain


cursors = st.builds(Cursor, st.text(max_size=5), st.text(max_size=5), st.integers(0, 2**62))
hints = st.builds(
    Hint,
    spans,
    st.sampled_from(Priority),
    st.floats(0.0, 1e10),
    st.booleans(),
    st.lists(cursors, max_size=4).map(tuple),
    st.booleans(),
    st.floats(0.0, 1e6),
    st.text(max_size=10),
    st.booleans(),
)


ENCODER = HintAnswerEncoder()
"""One for all examples, so that no answer has anything of the one before."""


@given(hints)
def test_hint_message_is_what_the_constructor_makes(hint: Hint) -> None:
    interval, due = Duration(), Timestamp()
    interval.FromMicroseconds(round(max(0.0, hint.poll_interval_s) * 1e6))
    due.FromMicroseconds(round(hint.next_poll_at * 1e6))
    plain = pb.Hint(
        poll_interval=interval,
        priority=pb.Priority.Value(f"PRIORITY_{hint.priority.name}"),
        next_poll_time=due,
        changed=hint.changed,
        heads=[core_pb2.ScopeCursor(scope=at.scope, epoch=at.epoch, sequence=at.sequence) for at in hint.heads],
        valid_duration=Duration(seconds=int(hint.valid_s)),
        prefer_stream=hint.prefer_stream,
        explanation=hint.explanation,
        more_scopes=hint.more_scopes,
    )
    assert hint_message(hint) == plain
    assert hint_answer(hint) == pb.GetHintResponse(hint=plain)
    encoded = ENCODER.encode(hint)
    assert pb.GetHintResponse.FromString(encoded) == pb.GetHintResponse(hint=plain)
    assert len(encoded) == hint_answer(hint).ByteSize(), "nothing is encoded twice"


@pytest.mark.parametrize("count", [0, 1, 32, 33])
def test_hint_answer_holds_the_longest_heads(count: int) -> None:
    """The length of 32 takes two octets; 33 are encoded by the plain version."""
    heads = tuple(Cursor(f"{number:03}" + "s" * 125, "e" * 128, 2**62) for number in range(count))
    hint = Hint(30.5, Priority.FAST, 1.8e9, True, heads, False, 305.0)
    assert pb.GetHintResponse.FromString(ENCODER.encode(hint)) == hint_answer(hint)


# ------------------------------------------------------------------------------------ request_batcher, shared_deadline


class Panic(BaseException):
    """As what a library in Rust raises for a fault of its own."""


async def outcome_of(work: Awaitable[object]) -> Outcome:
    """Return how a call ended: its result, or the type and arguments of what it raised."""
    try:
        return "returned", await asyncio.ensure_future(work)
    except BaseException as error:  # noqa: BLE001  # any exception is an outcome to compare
        return type(error).__name__, error.args


ENDS: list[object] = [1, None, "answer", ValueError("refused"), KeyError(1), Panic("fault"), asyncio.CancelledError()]


def ends_with(end: object) -> Callable[[], object]:
    def work() -> object:
        if isinstance(end, BaseException):
            raise end
        return end

    return work


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 3)), max_size=40))
def test_request_batcher_answers_what_a_direct_call_does(calls: list[tuple[object, int]]) -> None:
    """Each call ends in its own way, a number of turns of the loop after the one before it."""

    async def direct(work: Callable[[], object]) -> object:
        return work()

    async def served(serve: Callable[[Callable[[], object]], Awaitable[object]]) -> list[Outcome]:
        ended = []
        for end, turns in calls:
            ended.append(asyncio.ensure_future(outcome_of(serve(ends_with(end)))))
            for _ in range(turns):
                await asyncio.sleep(0)
        return await asyncio.gather(*ended)

    assert asyncio.run(served(RequestBatcher().serve)) == asyncio.run(served(direct))


class SkippingSelector(selectors.SelectSelector):
    """Lets the time pass that the loop would wait."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen in this loop"
        self.now_s += timeout
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    """A loop whose timers are due as soon as nothing else is."""

    def __init__(self) -> None:
        self._skipping = SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now_s


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def pause(seconds: float) -> None:
    passed, loop = asyncio.Event(), asyncio.get_running_loop()
    timer = loop.call_later(seconds, passed.set)
    try:
        await passed.wait()
    finally:
        timer.cancel()


async def hang() -> None:
    await asyncio.Event().wait()


async def hang_and_swallow() -> None:
    with suppress(asyncio.CancelledError):
        await hang()


async def hang_and_raise() -> None:
    try:
        await hang()
    except asyncio.CancelledError:
        raise KeyError("while it was cancelled") from None


async def fail() -> None:
    raise ValueError("by its script")


async def cancel_itself() -> None:
    raise asyncio.CancelledError


STEPS: dict[str, Callable[[], Awaitable[object]]] = {
    "turn": lambda: turns(1),
    "turns": lambda: turns(5),
    "sleep": lambda: pause(0.5),
    "sleep too long": lambda: pause(1.5),
    "shield": lambda: asyncio.shield(turns(2)),
    "hang": hang,
    "hang and swallow": hang_and_swallow,
    "hang and raise": hang_and_raise,
    "fail": fail,
    "cancel itself": cancel_itself,
}


async def played(steps: Sequence[str], trace: list[str]) -> str:
    for step in steps:
        trace.append(step)
        await STEPS[step]()
    return "done"


async def within_plain(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    async with asyncio.timeout(seconds):
        return await work


async def ended_within(within: Within, steps: Sequence[str], trace: list[str]) -> list[Outcome]:
    """Do the same work twice in one task, each time within a second; the second time shows what the first left."""
    ended: list[Outcome] = []
    for _ in range(2):
        try:
            ended.append(("returned", await within(1.0, played(steps, trace))))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # any of them is an outcome
            ended.append((type(error).__name__, error.args))
    task = asyncio.current_task()
    assert task is not None
    return [*ended, ("cancelling", task.cancelling())]


async def watched(
    within: Within, steps: Sequence[str], cancelled: int | str | None
) -> tuple[list[Outcome] | str, list[str]]:
    trace: list[str] = []
    task = asyncio.ensure_future(ended_within(within, steps, trace))
    if isinstance(cancelled, str):
        asyncio.get_running_loop().call_later(1.0, task.cancel)
    elif cancelled is not None:
        await turns(cancelled)
        task.cancel()
    done, _ = await asyncio.wait([task], timeout=60.0)  # which swallows both its deadline and the cancellation
    while not task.done():
        task.cancel()
        await turns(1)
    return task.result() if done and not task.cancelled() else "hangs or cancelled", trace


@settings(max_examples=500)
@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=5), st.none() | st.integers(0, 9) | st.just("at its deadline"))
def test_shared_deadline_ends_work_like_asyncio_timeout(steps: list[str], cancelled: int | str | None) -> None:
    """Also where the task is cancelled from elsewhere, after turns of the loop or in the very turn of its deadline."""
    outcomes = []
    for within in (SharedDeadlines().within, within_plain):
        with asyncio.Runner(loop_factory=SkippingLoop) as runner:
            outcomes.append(runner.run(watched(within, steps, cancelled)))
    assert outcomes[0] == outcomes[1]
