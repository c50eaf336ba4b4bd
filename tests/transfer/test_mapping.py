"""Maps entries of an export to targets and back, by the rules of a map."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from hypothesis import given

from syncbeat_server.directory.model import Member, MemberRole, Platform, Preferences, QuietHours, Registration
from syncbeat_server.transfer.mapping.forward import targets_of
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.mapping.reverse import (
    member_entry,
    path_of_value,
    preferences_entry,
    registration_entry,
)
from syncbeat_server.transfer.mapping.rules import TransferMap
from syncbeat_server.transfer.model import FeedValue, Json, Misfit, MisfitReason, Path, Target, UserPreferences
from syncbeat_server.transfer.rtdb.reading import read_entries
from syncbeat_server.transfer.rtdb.shapes import exported, json_text
from tests.support.rtdb_trees import TREES, entries_of, push_id, tree_of

pytestmark = pytest.mark.unit

APP = "app"
WHOLE = """
version = 1
[[value]]
path = "{top}/{key}"
scope = "top:{top}"
key = "k:{key}"
"""


def _targets(transfer_map: TransferMap | str, tree: str) -> list[Target | Misfit]:
    rules = parse_map(transfer_map) if isinstance(transfer_map, str) else transfer_map
    found = read_entries(io.BytesIO(tree.encode()), rules.root)
    return [target for entry in found for target in targets_of(rules, APP, entry)]


def _reasons(transfer_map: str, tree: str) -> list[MisfitReason | None]:
    return [found.reason if isinstance(found, Misfit) else None for found in _targets(transfer_map, tree)]


@given(TREES)
def test_tree_comes_back_from_its_values(tree: Json) -> None:
    rules = parse_map(WHOLE)

    targets = _targets(rules, json_text(exported(tree)))

    back: dict[Path, Json] = {}
    for target in targets:
        if isinstance(target, FeedValue):
            path = path_of_value(rules, target.scope, target.key)
            assert path is not None
            back[path] = target.value
    assert back == entries_of(tree, 2)
    assert {found.reason for found in targets if isinstance(found, Misfit)} <= {MisfitReason.UNMATCHED}
    if back:
        assert entries_of(tree_of(back), 2) == back


@given(TREES)
def test_ambiguous_names_are_refused_and_all_others_come_back(tree: Json) -> None:
    rules = parse_map(
        """
        version = 1
        unescape_keys = true
        [[value]]
        path = "{top}/{key}"
        scope = "{top}:{key}"
        key = "{key}"
        [[value]]
        path = "a/x/{key}"
        scope = "a:x"
        key = "{key}"
        """
    )
    tree_text = json_text(exported(tree))

    for entry in read_entries(io.BytesIO(tree_text.encode()), rules.root):
        for target in targets_of(rules, APP, entry):
            if isinstance(target, FeedValue):
                assert path_of_value(rules, target.scope, target.key) == entry.path


def test_two_rules_whose_names_meet_are_ambiguous_at_the_second() -> None:
    rules = """
    version = 1
    [[value]]
    path = "chats/{chat}/meta"
    scope = "chat:{chat}"
    key = "meta"
    [[value]]
    path = "chats/{chat}/messages/{m}"
    scope = "chat:{chat}"
    key = "{m}"
    """
    assert _reasons(rules, '{"chats": {"c": {"meta": 1, "messages": {"meta": 2, "m": 3}}}}') == [
        None,
        MisfitReason.AMBIGUOUS,
        None,
    ]


def test_source_time_of_a_push_id_and_of_fields() -> None:
    made = 1_700_000_000_123
    rules = """
    version = 1
    [[value]]
    path = "p/{m}"
    scope = "p"
    key = "{m}"
    part = "body"
    source_time = { push_id = "m" }
    [[value]]
    path = "ms/{m}"
    scope = "ms"
    key = "{m}"
    source_time = { field = "meta/at" }
    [[value]]
    path = "s/{m}"
    scope = "s"
    key = "{m}"
    source_time = { field = "at", unit = "iso" }
    """
    tree = (
        f'{{"p": {{"{push_id(made)}": {{"body": {{"t": "hi"}}, "other": 1}}, "no": {{"body": 1}}}},'
        f'"ms": {{"a": {{"meta": {{"at": {made}.5}}}}, "b": {{"x": 1}}, "c": {{"meta": {{"at": 1e30}}}}}},'
        '"s": {"a": {"at": "2024-01-02T03:04:05+01:00"}, "b": {"at": "2024-01-02T03:04:05"}, "c": {"at": 5}}}'
    )

    found = _targets(rules, tree)

    at = datetime.fromtimestamp(made // 1000, UTC).replace(microsecond=123_000)
    assert found[0] == FeedValue("p", push_id(made), {"t": "hi"}, at)
    told = [one.reason if isinstance(one, Misfit) else one for one in found[1:]]
    assert [one.source_time if isinstance(one, FeedValue) else one for one in told] == [
        MisfitReason.NOT_PUSH_ID,
        at.replace(microsecond=123_500),
        MisfitReason.FIELD_MISSING,
        MisfitReason.TIME,
        datetime(2024, 1, 2, 2, 4, 5, tzinfo=UTC),
        MisfitReason.TIME,
        MisfitReason.FIELD_TYPE,
    ]


DIRECTORY = """
version = 1
[[member]]
path = "chats/{chat}/members/{user}"
scope = "chat:{chat}"
user = "{user}"
role = "{.}"
roles = { true = "WRITER", viewer = "READER" }
[[device]]
path = "users/{user}/tokens/{token}"
user = "{user}"
token = "{token}"
platform = "{.platform}"
locale = "{.locale}"
[[preferences]]
path = "users/{user}/settings"
user = "{user}"
max_per_day = "max"
muted_types = "muted"
quiet_start = "quiet/from"
quiet_end = "quiet/to"
time_zone = "quiet/zone"
[[ignore]]
path = "presence"
"""


def test_members_devices_and_preferences() -> None:
    tree = """{"chats": {"c": {"members": {"a": true, "b": "viewer", "c": false, "d": "owner"}}},
        "users": {"a": {"tokens": {"tok:1": {"platform": "ios", "locale": "de"}, "tok 2": {"platform": "ios"},
                                   "tok3": {"platform": "palm"}, "tok4": true},
                        "settings": {"max": 5, "muted": ["x", "w"],
                                     "quiet": {"from": "22:30", "to": 420, "zone": "Europe/Berlin"}}},
                  "b": {"settings": {"max": 20000}}},
        "presence": {"a": true}}"""

    found = _targets(DIRECTORY, tree)

    device = found[4]
    assert isinstance(device, Registration)
    assert len(device.device_id) == 32
    quiet = QuietHours(22 * 60 + 30, 420, "Europe/Berlin")
    assert [one.reason if isinstance(one, Misfit) else one for one in found] == [
        Member("chat:c", "a", MemberRole.WRITER),
        Member("chat:c", "b", MemberRole.READER),
        MisfitReason.NOT_A_MEMBER,
        MisfitReason.ROLE,
        Registration(APP, "a", device.device_id, Platform.IOS, "tok:1", "", "de"),
        MisfitReason.NAME_CHARACTERS,
        MisfitReason.PLATFORM,
        MisfitReason.FIELD_MISSING,
        UserPreferences("a", Preferences(quiet, 5, ("w", "x"))),
        MisfitReason.PREFERENCE,
    ]


def test_directory_targets_come_back() -> None:
    rules = parse_map(DIRECTORY)
    quiet = QuietHours(60, 420, "Europe/Berlin")

    assert member_entry(rules, Member("chat:c", "b", MemberRole.READER)) == (("chats", "c", "members", "b"), "viewer")
    assert member_entry(rules, Member("room:c", "b", MemberRole.READER)) is None
    device = Registration(APP, "a", "x", Platform.IOS, "tok", "", "de")
    assert registration_entry(rules, device) == (
        ("users", "a", "tokens", "tok"),
        {"platform": "IOS", "locale": "de"},
    )
    assert preferences_entry(rules, "a", Preferences(quiet, 5, ("w",))) == (
        ("users", "a", "settings"),
        {"max": 5, "muted": {"0": "w"}, "quiet": {"from": 60, "to": 420, "zone": "Europe/Berlin"}},
    )
    assert preferences_entry(rules, "a", Preferences()) is None


def test_names_are_bounded_as_the_contract_bounds_them() -> None:
    long = "é" * 63

    assert _reasons(WHOLE, f'{{"{long}": {{"k": 1}}, "t": {{"{long}xyz": 1, "a\\u0007": 1, "": 1}}}}') == [
        MisfitReason.NAME_TOO_LONG,
        MisfitReason.NAME_TOO_LONG,
        MisfitReason.NAME_CHARACTERS,
        MisfitReason.NAME_EMPTY,
    ]


def test_unescape_keys_refuses_what_would_not_come_back() -> None:
    escaped = WHOLE.replace("version = 1", "version = 1\nunescape_keys = true")
    rules = parse_map(escaped)

    found = _targets(rules, '{"a%2Eb": {"x%25": 1, "y%zz": 2, "%2e": 3}}')

    assert found[0] == FeedValue("top:a.b", "k:x%", 1)
    assert [one.reason for one in found[1:] if isinstance(one, Misfit)] == [MisfitReason.ESCAPE] * 2
    assert path_of_value(rules, "top:a.b", "k:x%") == ("a%2Eb", "x%25")


def test_value_of_a_key_that_rtdb_cannot_have_has_no_path() -> None:
    rules = parse_map(WHOLE)
    for name in ("x/y", "y.z", "$", "#", "[", "]", "a\x7f", "a\x1f"):
        assert path_of_value(rules, "top:a", f"k:{name}") is None, name
        assert path_of_value(rules, f"top:{name}", "k:a") is None, name
    assert path_of_value(rules, "top:a", "k:a b%:é") == ("a", "a b%:é")
    escaped = parse_map(WHOLE.replace("version = 1", "version = 1\nunescape_keys = true"))
    assert path_of_value(escaped, "top:a", "k:x/y.z") == ("a", "x%2Fy%2Ez")
    assert _reasons(WHOLE, '{"top": {"x/y": 1, "a.b": 1, "ab": 1}}') == [MisfitReason.KEY, MisfitReason.KEY, None]
