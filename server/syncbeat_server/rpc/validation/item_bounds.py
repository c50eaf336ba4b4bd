"""Counts the items of a large request by the contract's bounds, before protobuf makes an object of each.

650,000 empty items fit into the largest request, and cost the loop 26 ms of parsing, in which no other call is served
(`tests/rpc/test_item_limits.py`). Counting ends at the first item that is too many: 2 ms at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor

from syncbeat_server.errors import FieldReason, FieldViolation
from syncbeat_server.rpc.contract.options import message_in, rules_of
from syncbeat_server.rpc.validation.wire_format import length_delimited

_OTHER_FIELDS = 512
"""Fields beside items: those of the contract, given more than once as protobuf allows, and those of later versions."""


@dataclass(frozen=True)
class ItemBounds:
    """Bounds of a message: the most items of its repeated fields, and the bounds of its messages, by field number.

    `most` is how many fields one may have in all, those of its messages included.
    """

    items: Mapping[int, tuple[str, int]]
    messages: Mapping[int, tuple[str, ItemBounds]]
    most: int


def item_bounds(message: Descriptor) -> ItemBounds:
    """Return the bounds of a request; of what is repeated not those of each item."""
    items, messages = {}, {}
    for field in message.fields:
        if field.is_repeated:
            most = rules_of(field).max_items
            if most is not None:
                items[field.number] = field.name, most
        elif (inner := message_in(field)) is not None and inner.full_name != message.full_name:
            messages[field.number] = field.name, item_bounds(inner)
    most = sum(number for _, number in items.values()) + sum(one.most for _, one in messages.values())
    return ItemBounds(items, messages, most + len(message.fields))


def excess_items(bounds: ItemBounds, data: bytes) -> FieldViolation | None:
    """Return the field of a request that has too many items, or what keeps them from being counted; None if neither."""
    most = bounds.most + _OTHER_FIELDS
    budget = iter(range(most))
    try:
        return _excess(bounds, data, "", Counter(), budget)
    except (ValueError, IndexError):
        if next(budget, None) is None:
            return FieldViolation("", f"at most {most} fields", FieldReason.TOO_MANY)
        return FieldViolation("", "these bytes are not a message of this type", FieldReason.MALFORMED)


def _excess(
    bounds: ItemBounds, data: bytes, prefix: str, counts: Counter[str], budget: Iterator[int]
) -> FieldViolation | None:
    for number, content in length_delimited(data, budget):
        if number in bounds.items:
            name, most = bounds.items[number]
            path = prefix + name
            counts[path] += 1
            if counts[path] > most:
                return FieldViolation(path, f"at most {most} items", FieldReason.TOO_MANY)
        elif number in bounds.messages:
            name, inner = bounds.messages[number]
            path = prefix + name
            counts[path] += 1
            if counts[path] > _OTHER_FIELDS:  # each would be descended into, which costs more than an item
                return FieldViolation(path, f"given more than {_OTHER_FIELDS} times", FieldReason.TOO_MANY)
            if fault := _excess(inner, content, f"{path}.", counts, budget):
                return fault
    return None
