"""Random messages of the contract whose fields are mostly good, and now and then just beyond a bound."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from syncbeat_server.rpc.contract.options import rules_of
from tests.support.valid_requests import fill, inner, is_map

_SHARE_SET, _SHARE_ODD, _SHARE_OVERFULL = 0.5, 0.15, 0.05
_GOOD = ("a", "chat:7", "Zoë", "日本", " ", "\u2028", "\ufeff", "a" * 128, "é" * 64)
_ODD = ("", "\x00", "a\x1f", "\x7f", "a\nb", "\t", "\r\n", "\x85", "a\n", "🔑", "-", "!~", "\u00a0")
_DOCUMENTS = ("{}", "1", '{"a": [1, 2.5e3]}', "", '"x\\ny"', "[[1]]")
_ODD_DOCUMENTS = ("{", "NaN", "\x00", '"\\u0000"', "1e400", "[" * 33 + "]" * 33)
_NUMBERS = (0, 1, 2, 50, 999, 1_000, 1_001, 1_439)
_ODD_NUMBERS = (-1, 1_440, 10_000, 10_001, 99_999, 100_000, -(2**31), 2**31 - 1)
_SPANS = ((0, 0), (1, 0), (5, 0), (60, 0), (300, 0), (3_600, 500_000_000), (86_400, 0))
_ODD_SPANS = (
    *((4, 999_999_999), (300, 1), (86_400, 1), (2_592_000, 1), (31_622_400, 1), (0, -1), (-1, 0), (2**62, 0)),
    *((0, 10**9), (1, -1), (-1, 1), (0, 2 * 10**9), (-(2**62), 0), (0, 999_999)),
)
_MOMENTS = ((0, 0), (1_800_000_000, 5), (-62_135_596_800, 0), (253_402_300_799, 999_999_999))
_ODD_MOMENTS = ((253_402_300_800, 0), (-62_135_596_801, 0), (0, -1), (0, 10**9), (2**62, 0))


def random_message(kind: Descriptor, random: Random) -> Message:
    """Return a message: what is required of it, and of the rest a share."""
    made = fill(GetMessageClass(kind)())
    for field in kind.fields:
        if random.random() < _SHARE_SET:
            _set(made, field, random)
    if random.random() < _SHARE_ODD:
        made.ClearField(random.choice(kind.fields).name)
    return made


def _set(made: Any, field: FieldDescriptor, random: Random) -> None:
    nested = inner(field)
    if is_map(field):
        for _ in range(_count(field, random)):
            getattr(made, field.name)[_text(field, random)[:130]] = _text(field, random)
    elif nested is not None and field.is_repeated:
        getattr(made, field.name).extend(random_message(nested, random) for _ in range(_count(field, random)))
    elif nested is not None:
        getattr(made, field.name).CopyFrom(random_message(nested, random))
    elif field.message_type is not None:
        _set_time(getattr(made, field.name), field.message_type.name, random)
    elif field.is_repeated:
        getattr(made, field.name).extend(_text(field, random) for _ in range(_count(field, random)))
    else:
        setattr(made, field.name, _scalar(field, random))


def _count(field: FieldDescriptor, random: Random) -> int:
    most = rules_of(field).max_items
    assert most is not None
    if most <= 100 and random.random() < _SHARE_OVERFULL:
        return most + 1
    return random.choice((0, 1, 1, 2, 3))


def _set_time(value: Any, kind: str, random: Random) -> None:
    odd = random.random() < _SHARE_ODD
    if kind == "Duration":
        value.seconds, value.nanos = random.choice(_ODD_SPANS if odd else _SPANS)
    else:
        value.seconds, value.nanos = random.choice(_ODD_MOMENTS if odd else _MOMENTS)


def _scalar(field: FieldDescriptor, random: Random) -> object:
    odd = random.random() < _SHARE_ODD
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return random.choice((-1, 99, 2**31 - 1)) if odd else random.choice((0, 1, 2))
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
            return random.choice(_ODD_NUMBERS if odd else _NUMBERS)
        case _:
            return _text(field, random)


def _text(field: FieldDescriptor, random: Random) -> str:
    rules = rules_of(field)
    odd = random.random() < _SHARE_ODD
    if rules.json:
        return random.choice(_ODD_DOCUMENTS if odd else _DOCUMENTS)
    most = rules.max_bytes
    assert most is not None
    if odd:
        edges = ("a" * (most + 1), "é" * (most // 2 + 1), "a" * most)
        return random.choice((*_ODD, *edges))
    return random.choice(("a", "key-1") if rules.visible_ascii else _GOOD)
