"""Composes JSON merge patches (RFC 7396), so that any number of them costs one merge onto the old value.

Two merge patches do not compose to one: {"a": 5} and then {"a": {"y": 2}} leaves {"y": 2} whatever `a` was, and no
patch says that. But they always compose to two, applied one after the other: the first removes members that one patch
replaced and a later one made an object again, the second sets the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import orjson

_Json: TypeAlias = "dict[str, _Json] | list[_Json] | str | bool | orjson.Fragment | None"


class ComposedPatch(NamedTuple):
    """Holds two merge patches to apply in this order; without `reset` the second alone. No `patch` is a deletion."""

    reset: str | None
    patch: str | None


class _KnownValue(NamedTuple):
    """Marks a place whose value is known, whatever was there before. None: nothing is there."""

    value: _Json


class _MergeNode(dict[str, "_KnownValue | _MergeNode"]):
    """Marks a place where an object is merged onto the old value: its members that any patch has."""


def compose(patches: Sequence[str | None]) -> ComposedPatch:
    """Return two patches that do what `patches`, JSON documents, do one after the other. None is a deletion.

    Raises:
        ValueError: one is no JSON document, or nests too deep.
    """
    # A deletion, or a patch that is no object, leaves nothing of the patches before it.
    begin = max((place for place, patch in enumerate(patches) if patch is None or not _is_object(patch)), default=-1)
    reset = None if begin < 0 else "null"
    rest = [patch for patch in patches[begin + 1 :] if patch is not None]
    if not rest:
        return ComposedPatch(None, patches[begin])
    if len(rest) == 1:
        return ComposedPatch(reset, rest[0])
    try:
        if reset is not None:
            value: _Json = None
            for patch in rest:
                value = _merged(value, read_json(patch))
            return ComposedPatch(reset, _written(value))
        node = _MergeNode()
        for patch in rest:
            _merge(node, read_json(patch))
        resets = _resets(node)
        return ComposedPatch(_written(resets) if resets else None, _written(_sets(node)))
    except (TypeError, RecursionError) as error:
        raise ValueError("a patch cannot be read or written as JSON") from error


def compose_each(several: Sequence[Sequence[str | None]]) -> list[ComposedPatch]:
    """Compose the patches of several keys.

    Raises:
        ValueError: as `compose`.
    """
    return [compose(patches) for patches in several]


def apply(value: str | None, patches: Sequence[str | None]) -> str | None:
    """Return the result of applying patches to a value, JSON or None; None if it is deleted.

    Raises:
        ValueError: one is no JSON document, or nests too deep.
    """
    try:
        known: _Json = None if value is None else read_json(value)
        for patch in patches:
            known = None if patch is None else _merged(known, read_json(patch))
        return None if patches and patches[-1] is None else _written(known)
    except (TypeError, RecursionError) as error:
        raise ValueError("a value cannot be read or written as JSON") from error


def _is_object(patch: str) -> bool:
    return patch.lstrip(" \t\n\r").startswith("{")


def read_json(patch: str) -> _Json:
    """Parse JSON. Numbers stay as they are written, because the result is to be stored exactly."""
    read: _Json = json.loads(patch, parse_float=orjson.Fragment, parse_int=orjson.Fragment)
    return read


def _written(value: _Json) -> str:
    return orjson.dumps(value).decode()


def _merged(value: _Json, patch: _Json) -> _Json:
    # RFC 7396, section 2. Changes its arguments, which were parsed for this.
    if not isinstance(patch, dict):
        return patch
    members: dict[str, _Json] = value if isinstance(value, dict) else {}
    for name, member in patch.items():
        if member is None:
            members.pop(name, None)
        else:
            members[name] = _merged(members.get(name), member)
    return members


def _merge(node: _MergeNode, patch: _Json) -> None:
    if not isinstance(patch, dict):
        raise TypeError("a patch that is merged is an object")
    for name, member in patch.items():
        place = node.get(name)
        if not isinstance(member, dict):
            node[name] = _KnownValue(member)
        elif isinstance(place, _KnownValue):
            node[name] = _KnownValue(_merged(place.value, member))
        else:
            if place is None:
                place = node[name] = _MergeNode()
            _merge(place, member)


def _resets(node: _MergeNode) -> dict[str, _Json]:
    # Without its removal, the old value of such a member would be merged into, and not replaced.
    resets: dict[str, _Json] = {}
    for name, place in node.items():
        if isinstance(place, _MergeNode):
            inner = _resets(place)
            if inner:
                resets[name] = inner
        elif isinstance(place.value, dict):
            resets[name] = None
    return resets


def _sets(node: _MergeNode) -> dict[str, _Json]:
    return {name: _sets(place) if isinstance(place, _MergeNode) else place.value for name, place in node.items()}
