"""Composing merge patches: two do what any number of them do one after the other, onto whatever is there."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syncbeat_server.sync.content.merge_patch import ComposedPatch, apply, compose

pytestmark = pytest.mark.unit

GONE = object()


def merged(value: Any, patch: Any) -> Any:
    """RFC 7396, section 2, word by word."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for name, member in patch.items():
        if member is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), member)
    return result


def read(text: str) -> Any:
    """The document with its numbers as they are written."""
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def one_by_one(base: Any, patches: list[str | None]) -> Any:
    value = base
    for patch in patches:
        value = GONE if patch is None else merged(None if value is GONE else value, read(patch))
    return value


def at_once(base: Any, composed: ComposedPatch) -> Any:
    if composed.patch is None:
        assert composed.reset is None
        return GONE
    value = None if base is GONE else base
    if composed.reset is not None:
        value = merged(value, read(composed.reset))
    return merged(value, read(composed.patch))


names = st.sampled_from("abc")
# With nulls also inside of arrays, where they are values as any other.
leaves: st.SearchStrategy[Any] = st.sampled_from([None, 1, "x", True, [], [{"a": None}], [None, 2], {}])
patches = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=3), max_leaves=8)
# What is stored is a result of patches: no null is a member of its objects.
values = st.lists(patches, min_size=1, max_size=3).map(lambda made: one_by_one(GONE, [json.dumps(p) for p in made]))


@given(
    st.one_of(st.just(GONE), values), st.lists(st.one_of(st.none(), patches.map(json.dumps)), min_size=1, max_size=7)
)
@example(GONE, ['{"a": 5}', '{"a": {"y": 2}}'])
@example({"a": {"x": 1}}, ['{"a": 5}', '{"a": {"y": 2}}'])
@example({"a": {"x": {"z": 1}}}, ['{"a": {"x": null}}', '{"a": {"x": {"y": 2}}}', '{"a": {"x": {"y": null}}}'])
@example({"a": 1}, [None, '{"b": 1}', '{"b": null}'])
@example({"a": 1}, ["null", '{"b": {}}'])
def test_merge_patch_composition_equals_sequential_application(base: Any, sequence: list[str | None]) -> None:
    assert at_once(base, compose(sequence)) == one_by_one(base, sequence)


@pytest.mark.parametrize("number", ["1e308", "0.10", "1.000000000000000000000000000000001", "-0", "1E+2", "9" * 34])
def test_merge_patch_composition_keeps_number_spelling(number: str) -> None:
    composed = compose([f'{{"a": {number}}}', f'{{"b": [{number}]}}'])
    assert composed.patch is not None
    assert composed.patch.count(number) == 2


def test_merge_patch_composition_of_one_is_itself() -> None:
    assert compose(['{ "a" : 1.0 }']) == ComposedPatch(None, '{ "a" : 1.0 }')
    assert compose(['{"b": 1}', None, '{ "a" : 1.0 }']) == ComposedPatch("null", '{ "a" : 1.0 }')
    assert compose(['{"b": 1}', None]) == ComposedPatch(None, None)
    assert compose(['{"b": 1}', " [1.0]"]) == ComposedPatch(None, " [1.0]")


@pytest.mark.parametrize("wrong", ['{"a": ', '{"a": "\\ud800"}', '{"a":' * 5_000])
def test_merge_patch_composition_refuses_non_documents(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        compose([wrong, "{}"])


@given(values, st.lists(st.none() | patches.map(json.dumps), min_size=1, max_size=4))
def test_merge_patch_application_equals_one_by_one(value: Any, those: list[str | None]) -> None:
    expected = one_by_one(value, those)
    found = apply(None if value is GONE else json.dumps(value, default=float), those)
    assert (GONE if found is None else read(found)) == expected
