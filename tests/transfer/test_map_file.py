"""Reads maps; each fault is a sentence that names table and line."""

from __future__ import annotations

import pytest

from syncbeat_server.errors import ConfigurationError
from syncbeat_server.transfer.mapping.map_file import parse_map

pytestmark = pytest.mark.unit

_VALUE = '[[value]]\npath = "chats/{chat}/{m}"\nscope = "chat:{chat}"\nkey = "{m}"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "map.toml: version: it is missing"),
        ("version = 1", "the map has no rule"),
        (f"version = 2\n{_VALUE}", "version = 2: this server reads maps of version 1"),
        ("version = ", "map.toml: not TOML"),
        ('version = 1\n[[value]]\npath = "a"\n', "map.toml, line 2, [[value]] 1: scope: it is missing"),
        (f'version = 1\n{_VALUE}\n[[value]]\nfoo = "x"\n', "map.toml, line 7, [[value]] 2: foo: there is no such key"),
        (f"version = 1\n{_VALUE}".replace('"{m}"', '"{n}"'), "line 2, [[value]] 1: key: the path has no variable {n}"),
        (f"version = 1\n{_VALUE}".replace('"{m}"', '"m"'), "neither scope nor key has {m}"),
        (f"version = 1\n{_VALUE}".replace('"{m}"', '"{.x}"'), "scope and key are made of variables"),
        (f"version = 1\n{_VALUE}".replace("chats/", "chats//"), "has an empty key"),
        (f"version = 1\n{_VALUE}".replace("/{m}", "/x{m}"), "to be one variable in braces"),
        (f"version = 1\n{_VALUE}".replace("{m}", "{chat}"), "names a variable twice: chat"),
        (f"version = 1\n{_VALUE}".replace('"{m}"', '"{m"'), "braces hold the name of a variable"),
        (f"version = 1\n{_VALUE}source_time = {{}}", "want push_id or field, one of them"),
        (f'version = 1\n{_VALUE}source_time = {{ push_id = "x" }}', "the path has no variable {x}"),
        (f'version = 1\n{_VALUE}source_time = {{ push_id = "m", unit = "s" }}', "a push id has its own unit"),
        (
            f'version = 1\n{_VALUE}\n[[ignore]]\npath = "chats/{{c}}/{{m}}/x"\n',
            "map.toml, line 7, [[ignore]] 1: path 'chats/{c}/{m}/x' lies inside 'chats/{chat}/{m}' of map.toml, line 2",
        ),
        ('version = 1\n[[member]]\npath = "{u}"\nscope = "s"\nuser = "{u}"\nrole = "boss"', "role 'boss': want READER"),
        ('version = 1\n[[preferences]]\npath = "{u}"\nuser = "{u}"', "no preference is named"),
        (
            'version = 1\n[[preferences]]\npath = "{u}"\nuser = "{u}"\nquiet_start = "a"',
            "quiet_start and quiet_end: want both or none",
        ),
        ("version = 1\n[[ignore]]\npath = '" + "/".join("k" * 33) + "'", "nothing in RTDB is deeper than 32"),
        ("#" + "x" * (1 << 20), "the map is larger than"),
    ],
)
def test_a_fault_of_a_map_is_a_sentence_with_table_and_line(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_map(text, "map.toml")

    assert said in str(caught.value)
    assert str(caught.value).startswith("map.toml")


def test_all_faults_of_tables_are_told_at_once() -> None:
    broken = _VALUE.replace('"{m}"', '"{n}"')

    with pytest.raises(ConfigurationError) as caught:
        parse_map(f"version = 1\n{broken}{broken}", "m")

    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "m, line 2, [[value]] 1",
        "m, line 6, [[value]] 2",
    ]
