"""Strategies for trees as the Realtime Database holds them, and what they consist of."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import strategies as st

from syncbeat_server.transfer.model import Json, Path

_PUSH_ALPHABET = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_FORBIDDEN = '.$#[]/"' + "".join(map(chr, range(32))) + "\x7f"
KEYS = st.one_of(
    st.sampled_from(["0", "1", "2", "3", "10", "a", "-JhLeOlGIEjaIOFHR0xd", "%2E", "x:y", "é", "😀"]),
    st.text(st.characters(exclude_characters=_FORBIDDEN, exclude_categories=["Cs"]), min_size=1, max_size=6),
)
"""Keys: indexes of arrays, push ids, escapes, separators of templates, any text that RTDB lets in."""
_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
_NUMBERS = st.one_of(
    st.integers(-(2**53), 2**53),
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=7).map(
        lambda number: number.normalize() + Decimal(0)
    ),
)
LEAVES: st.SearchStrategy[Json] = st.one_of(st.booleans(), _TEXTS, _NUMBERS)


def _objects(children: st.SearchStrategy[Json]) -> st.SearchStrategy[Json]:
    return st.dictionaries(KEYS, children, min_size=1, max_size=4)


VALUES: st.SearchStrategy[Json] = st.recursive(LEAVES, _objects, max_leaves=8)
"""Values in canonical form."""
TREES: st.SearchStrategy[Json] = st.dictionaries(
    KEYS, st.one_of(VALUES, st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)), min_size=1, max_size=4
)
"""Trees in canonical form, with some at least two levels deep."""


def push_id(milliseconds: int, tail: str = "IEjaIOFHR0xd") -> str:
    """Return the push id of a time, as RTDB's clients make it: eight digits to the base of 64, and twelve of chance."""
    digits = ""
    for _ in range(8):
        milliseconds, digit = divmod(milliseconds, 64)
        digits = _PUSH_ALPHABET[digit] + digits
    return digits + tail


def entries_of(tree: Json, depth: int) -> dict[Path, Json]:
    """Return the subtrees at this depth by their paths."""
    if not depth:
        return {(): tree}
    if not isinstance(tree, dict):
        return {}
    return {(key, *path): value for key, below in tree.items() for path, value in entries_of(below, depth - 1).items()}


def tree_of(entries: dict[Path, Json]) -> Json:
    """Return the tree of these subtrees; the opposite of `entries_of`."""
    tree: dict[str, Json] = {}
    for path, value in entries.items():
        place = tree
        for key in path[:-1]:
            below = place.setdefault(key, {})
            assert isinstance(below, dict)
            place = below
        place[path[-1]] = value
    return tree
