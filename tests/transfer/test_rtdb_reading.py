"""Reads exports of the Realtime Database as a stream: odd shapes, exact numbers, bounds."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.importing.batches import checked_text
from syncbeat_server.transfer.model import Json, MisfitReason
from syncbeat_server.transfer.rtdb.keys import escape_key, unescape_key
from syncbeat_server.transfer.rtdb.path_tree import NestedPatternsError, path_tree
from syncbeat_server.transfer.rtdb.push_ids import push_id_time
from syncbeat_server.transfer.rtdb.reading import Entry, read_entries
from syncbeat_server.transfer.rtdb.shapes import array_length, canonical, exported, json_text
from tests.support.rtdb_trees import TREES, entries_of, push_id

pytestmark = pytest.mark.unit


def _read(text: str | bytes, *patterns: str) -> list[Entry]:
    root = path_tree([tuple(pattern.split("/")) for pattern in patterns])
    return list(read_entries(io.BytesIO(text.encode() if isinstance(text, str) else text), root))


def _values(text: str, *patterns: str) -> dict[str, Json | None]:
    return {"/".join(entry.path): entry.value for entry in _read(text, *patterns)}


@given(TREES)
def test_streamed_values_are_those_of_the_whole_tree(tree: Json) -> None:
    text = json_text(exported(tree))

    entries = _read(text, "{a}/{b}")

    assert {entry.path: entry.value for entry in entries if entry.fault is None} == entries_of(tree, 2)
    scalars = {path for path, value in entries_of(tree, 1).items() if not isinstance(value, dict)}
    assert {entry.path for entry in entries if entry.fault is MisfitReason.UNMATCHED} == scalars


@given(TREES)
def test_canonical_form_survives_the_export_shape(tree: Json) -> None:
    assert canonical(exported(tree)) == tree
    assert canonical(json.loads(json_text(exported(tree)), parse_float=Decimal)) == tree


def test_arrays_are_objects_with_indexes_and_gaps_are_absent() -> None:
    text = '{"rooms": [null, {"tags": ["a", null, "c"]}, {"tags": []}]}'

    assert _values(text, "rooms/{room}") == {"rooms/1": {"tags": {"0": "a", "2": "c"}}}
    assert exported({"0": "a", "2": "c"}) == ["a", None, "c"]
    assert exported({"0": "a", "9": "b"}) == {"0": "a", "9": "b"}


@pytest.mark.parametrize(
    ("keys", "length"),
    [
        ("0", 1),
        ("1", None),
        ("0 1 3", 4),
        ("01 1", None),
        ("0 x", None),
        ("", None),
        ("٣", None),
        ("99999999999", None),
    ],
)
def test_array_length_follows_the_rule_of_exports(keys: str, length: int | None) -> None:
    assert array_length(dict.fromkeys(keys.split())) == length


def test_null_and_empty_containers_are_absent() -> None:
    text = '{"a": {"x": null, "y": {}, "z": {"deep": [[], {}]}}, "b": {}, "c": null, "d": {"v": false}}'

    assert _values(text, "{top}/{key}") == {"d/v": False}
    assert _values(text, "{top}") == {"d": {"v": False}}


def test_numbers_are_exact() -> None:
    text = '{"n": {"a": 0.1, "b": 1e400, "c": 123456789012345678901234567890, "d": 1.50, "e": 9007199254740993}}'

    value = _values(text, "{n}")["n"]

    assert isinstance(value, dict)
    assert value["a"] == Decimal("0.1")
    assert value["b"] == Decimal("1e400")
    assert value["c"] == Decimal(123456789012345678901234567890)
    assert json_text(value) == ('{"a":0.1,"b":1E+400,"c":123456789012345678901234567890,"d":1.50,"e":9007199254740993}')


def test_text_is_kept_to_the_last_character() -> None:
    text = '{"a": {"k": "\\u00e9\\ud83d\\ude00\\u0000\\u2028", "half": "x\\ud800"}}'

    assert _values(text, "{a}") == {"a": {"k": "é😀\0\u2028", "half": "x?"}}


def test_priorities_of_a_full_export_are_dropped() -> None:
    text = '{"a": {".priority": 1, "x": {".value": 5, ".priority": "p"}, "y": {".priority": 2, "z": 1}}}'

    assert _values(text, "{a}") == {"a": {"x": 5, "y": {"z": 1}}}


def test_literal_keys_go_before_variables() -> None:
    text = '{"users": {"u1": {"name": "Ann", "tokens": {"t": true}, "plan": {"x": 1}}}}'
    root = path_tree([("users", "{u}", "{field}"), ("users", "{u}", "tokens", "{t}")])

    found = {entry.path[2:]: entry.node.rules for entry in read_entries(io.BytesIO(text.encode()), root)}

    assert found == {("name",): (0,), ("tokens", "t"): (1,), ("plan",): (0,)}


def test_reading_never_turns_back_at_a_literal() -> None:
    root = path_tree([("a", "x", "b"), ("a", "{v}", "c"), ("a", "{v}", "{w}", "d")])
    text = '{"a": {"x": {"b": 1, "c": 2, "e": {"d": 3}}, "y": {"b": {"d": 4}}}}'

    found = {entry.path[1:]: entry.node.rules for entry in read_entries(io.BytesIO(text.encode()), root)}

    assert found == {("x", "b"): (0,), ("x", "c"): (1,), ("x", "e", "d"): (2,), ("y", "b", "d"): (2,)}


@pytest.mark.parametrize("patterns", [["a/{b}", "a/{b}/c"], ["a/{b}/c", "a/{x}"]])
def test_nested_patterns_are_refused(patterns: list[str]) -> None:
    with pytest.raises(NestedPatternsError):
        path_tree([tuple(pattern.split("/")) for pattern in patterns])


def test_what_no_rule_takes_is_told_once_for_a_subtree() -> None:
    found = _read('{"a": {"b": {"c": 1, "d": 2}}, "x": {"y": {"z": {}}}, "n": null, "m": 1}', "k/{v}")

    assert [(entry.path, entry.fault) for entry in found] == [
        (("a",), MisfitReason.UNMATCHED),
        (("m",), MisfitReason.UNMATCHED),
    ]


def test_value_beyond_the_size_is_told_and_skipped() -> None:
    text = json.dumps({"v": {"large": ["x" * 100_000] * 40, "small": 1}, "w": {"k": 2}})

    found = _read(text, "{top}/{key}")

    assert [(entry.path, entry.fault) for entry in found] == [
        (("v", "large"), MisfitReason.TOO_LARGE),
        (("v", "small"), None),
        (("w", "k"), None),
    ]


def test_depth_is_bounded() -> None:
    def nested(levels: int) -> Any:
        return {"k": nested(levels - 1)} if levels else 1

    assert [entry.fault for entry in _read(json.dumps({"a": nested(31)}), "{a}")] == [None]
    deep = _read(json.dumps({"a": nested(40), "b": 1}), "{a}")
    assert [(entry.path, entry.fault) for entry in deep] == [(("a",), MisfitReason.TOO_DEEP), (("b",), None)]


@pytest.mark.parametrize("before", [1, 200_000], ids=["in the first buffer", "behind it"])
def test_number_of_a_mebibyte_of_digits_is_told_by_its_path(before: int) -> None:
    digits = "9" * (1 << 20)
    text = (
        f'{{"v": {{"a": "{"x" * before}", "b": {digits}, "c": "{digits}", "d": [-{digits}], "e": 1.{digits}, "f": 1}}}}'
    )

    found = {entry.path[-1]: entry.value for entry in _read(text, "v/{v}") if entry.value is not None}

    assert (list(found), found["c"], found["f"]) == (["a", "b", "c", "d", "e", "f"], digits, 1)
    checked = {key: checked_text(value) for key, value in found.items() if key in "bde"}
    assert checked == dict.fromkeys("bde", MisfitReason.NUMBER)


@pytest.mark.parametrize(
    "text", ["", "{", '{"a": 1', '{"a": NaN}', "[1] x", b'{"a": "\xff"}', '{"a": 1e' + "9" * 19 + "}", "5"]
)
def test_a_broken_export_is_a_sentence(text: str | bytes) -> None:
    with pytest.raises(ConfigurationError, match="the export"):
        _read(text, "{a}")


def test_an_empty_export_has_no_entries() -> None:
    assert _read("null", "{a}") == []
    assert _read("{}", "{a}") == []


@given(st.text(max_size=20))
def test_escaped_keys_come_back(key: str) -> None:
    escaped = escape_key(key)

    assert not set(escaped) & set(".$#[]/")
    assert unescape_key(escaped) == key


@given(st.text(alphabet="%2E5ae.x", max_size=12))
def test_unescaped_keys_come_back_or_are_refused(key: str) -> None:
    plain = unescape_key(key)

    assert plain is None or escape_key(plain) == key.replace(".", "%2E")
    assert plain is not None or "%" in key


@given(st.integers(0, 253_402_300_799_999))
def test_push_ids_have_their_time(milliseconds: int) -> None:
    assert push_id_time(push_id(milliseconds)) == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        milliseconds=milliseconds
    )


@pytest.mark.parametrize("key", ["-JhLeOlGIEjaIOFHR0x", "-JhLeOlGIEjaIOFHR0x!", "z" * 20, ""])
def test_other_keys_are_no_push_ids(key: str) -> None:
    assert push_id_time(key) is None


def test_push_id_of_the_published_description_is_of_its_month() -> None:
    made = push_id_time("-JhLeOlGIEjaIOFHR0xd")

    assert made is not None
    assert (made.year, made.month) == (2015, 2)
