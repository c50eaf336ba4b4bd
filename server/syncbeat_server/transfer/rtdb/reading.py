"""Reads an export as a stream: yields the values at the paths of rules, with never more than one of them in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import ijson

from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.bounded_numbers import BoundedNumbers
from syncbeat_server.transfer.export_faults import told_faults
from syncbeat_server.transfer.model import Json, MisfitReason, Path
from syncbeat_server.transfer.rtdb.path_tree import PathNode
from syncbeat_server.transfer.rtdb.shapes import exact_number

MAX_DEPTH = 32
"""The most levels of a tree: RTDB's own limit, https://firebase.google.com/docs/database/usage/limits"""

_BUFFER_OCTETS = 1 << 17
_NODE_OCTETS = 8  # that each member counts beside its text: quotes, colon, comma, a short number
# More than what fits, since `_NODE_OCTETS` is on the high side; the feed checks values exactly.
_COLLECTED_OCTETS = 3 * VALUE_OCTETS
_STARTS = frozenset(("start_map", "start_array"))
_ENDS = frozenset(("end_map", "end_array"))
# What `format=export` adds: a leaf with a priority is an object of both. Priorities have no place in Syncbeat.
_VALUE, _PRIORITY = ".value", ".priority"

_Events = Iterator[tuple[str, Any]]


class Entry(NamedTuple):
    """Holds what stands at a path: the value of a place that rules take, or the fault for which there is none.

    `node` is the place in the tree of patterns; of an unmatched path it is the last one that a pattern goes through.
    """

    node: PathNode
    path: Path
    value: Json | None
    fault: MisfitReason | None = None


def read_entries(export: IO[bytes], root: PathNode) -> Iterator[Entry]:
    """Yield the values at the paths of rules, and the places that no rule takes, in the order of the file.

    Null and what is empty is absent, as in RTDB. Elements of arrays have their index as key.

    Raises:
        ConfigurationError: the file is no JSON document, or no object.
    """
    events: _Events = ijson.basic_parse(BoundedNumbers(export), buf_size=_BUFFER_OCTETS)
    with told_faults(export):
        yield from _read_tree(events, root)


def _read_tree(events: _Events, root: PathNode) -> Iterator[Entry]:
    event, _ = next(events)
    if event == "null":
        return
    if event not in _STARTS:
        raise ConfigurationError("the export is a single value: want an object with the tree from the root on")
    place = _Place(root, event)
    for event, value in events:
        if event == "map_key":
            place.key = value
        elif event in _ENDS:
            place.leave()
        else:
            place.count_element()
            entry = None if event == "null" else _next_entry(events, event, value, place)
            if entry is not None:
                yield entry


class _Place:
    """Follows the containers above the values: their path, their nodes, and the next index in arrays."""

    __slots__ = ("_indexes", "key", "nodes", "path")

    def __init__(self, root: PathNode, event: str) -> None:
        self.nodes = [root]
        self.path: list[str] = []
        self.key = ""
        self._indexes = [_first_index(event)]

    def count_element(self) -> None:
        """Take the next index for the key, if this is an array."""
        if self._indexes[-1] >= 0:
            self.key = str(self._indexes[-1])
            self._indexes[-1] += 1

    def enter(self, node: PathNode, event: str) -> None:
        """Go into a container."""
        self.nodes.append(node)
        self.path.append(self.key)
        self._indexes.append(_first_index(event))

    def leave(self) -> None:
        """Go out of a container."""
        self.nodes.pop()
        self._indexes.pop()
        if self.path:
            self.path.pop()


def _first_index(event: str) -> int:
    return 0 if event == "start_array" else -1


def _next_entry(events: _Events, event: str, value: Any, place: _Place) -> Entry | None:
    """Read what begins with this event; None if it is a container that patterns go into, or nothing to tell of."""
    node = place.nodes[-1].child(place.key)
    path = (*place.path, place.key)
    if node is not None and node.rules:
        entry = _entry(events, event, value, node, path)
        return None if entry.value is None and entry.fault is None else entry
    if node is None or event not in _STARTS:
        has_content = _skip(events) if event in _STARTS else place.key != _PRIORITY
        return Entry(place.nodes[-1], path, None, MisfitReason.UNMATCHED) if has_content else None
    if len(path) >= MAX_DEPTH:
        _skip(events)
        return Entry(node, path, None, MisfitReason.TOO_DEEP)
    place.enter(node, event)
    return None


def _entry(events: _Events, event: str, value: Any, node: PathNode, path: Path) -> Entry:
    if event not in _STARTS:
        return Entry(node, path, exact_number(value) if event == "number" and type(value) is int else value)
    collected = _collect(events, event, MAX_DEPTH - len(path))
    if isinstance(collected, MisfitReason):
        return Entry(node, path, None, collected)
    return Entry(node, path, None if collected == {} else collected)


def _collect(events: _Events, start: str, max_depth: int) -> Json | MisfitReason:
    """Return the container whose start was read, in canonical form; empty if nothing is in it.

    One loop on local names: an export of a gigabyte has fifty million events.
    """
    # Of the containers around the present one: members, key of the next member, index of the next element or -1.
    outer: list[tuple[dict[str, Json], str, int]] = []
    members: dict[str, Json] = {}
    key, index, octets = "", _first_index(start), 0
    for event, value in events:
        if event == "map_key":
            key = value
            continue
        if event in _ENDS:
            members.pop(_PRIORITY, None)
            inner = members.get(_VALUE, members)
            if not outer:
                return inner
            members, key, index = outer.pop()
            if inner != {}:
                members[key] = inner
            continue
        if index >= 0:
            key = str(index)
            index += 1
        if event in _STARTS:
            if len(outer) + 1 >= max_depth:
                _skip(events, depth=len(outer) + 2)
                return MisfitReason.TOO_DEEP
            outer.append((members, key, index))
            members, index = {}, _first_index(event)
        elif event != "null":
            octets += len(key) + _NODE_OCTETS + (len(value) if event == "string" else 0)
            if octets > _COLLECTED_OCTETS:
                _skip(events, depth=len(outer) + 1)
                return MisfitReason.TOO_LARGE
            members[key] = exact_number(value) if type(value) is int else value
    raise AssertionError("the parser ends documents itself")


def _skip(events: _Events, depth: int = 1) -> bool:
    """Skip to the end of the `depth` containers that are open; return True if a value is in them."""
    content = False
    for event, _ in events:
        if event in _STARTS:
            depth += 1
        elif event in _ENDS:
            depth -= 1
            if not depth:
                break
        elif event not in ("map_key", "null"):
            content = True
    return content
