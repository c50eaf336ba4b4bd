"""JSON documents that are small on the wire and built to be large or slow when they are checked, merged or read."""

from __future__ import annotations

import json

import hypothesis
from hypothesis import strategies as st

_MOST_BYTES = 262_144

_numbers = st.one_of(
    st.sampled_from(["1e308", "1e-307", "1e309", "1e-16000", "0e-16000", "1e131071", "9" * 34, "9" * 5_000]),
    st.sampled_from(["1." + "0" * 40, "0", "-1e99", "1e0", "1e17", "1.5e1", "1e00000000000000000001"]),
    st.builds("{}e{}".format, st.integers(-99, 99), st.integers(-320, 320)),
)
_keys = st.sampled_from(["k", "é", "\u0001", '"', "\\", "k" * 1_000, "😀" * 30, "1e309", "{["])
_sizes = st.sampled_from([1, 30, 1_000, 8_000, 40_000, 130_000])


def _filled(part: str, count: int, opened: str, closed: str) -> str:
    return opened + ",".join([part] * max(1, min(count, (_MOST_BYTES - 2) // (len(part.encode()) + 1)))) + closed


def _wide(value: str, count: int, key: str) -> str:
    room, members = _MOST_BYTES - 2, []
    for number in range(count):
        member = f"{json.dumps(f'{key}{number}', ensure_ascii=False)}:{value}"
        room -= len(member.encode()) + 1
        if room < 0:
            break
        members.append(member)
    return "{" + ",".join(members) + "}"


def _deep(depth: int, inner: str, opened: str, closed: str) -> str:
    return opened * depth + inner + closed * depth


_many_numbers = st.builds(lambda number, count: _filled(number, count, "[", "]"), _numbers, _sizes)
_values = st.sampled_from(["{}", '{"a":{"b":1}}', '{"a":null}', "null", "1", "1e200", '"\\u0001"'])
_wide_ones = st.builds(_wide, _values, _sizes, _keys)
_deep_ones = st.builds(
    lambda depth, pair: _deep(depth, "1", *pair),
    st.sampled_from([1, 31, 32, 33, 1_000, 100_000]),
    st.sampled_from([("[", "]"), ('{"a":', "}")]),
)
_brackets = st.builds(
    lambda depth, count: _filled(_deep(depth, "", "[", "]"), count, "[", "]"), st.integers(1, 33), _sizes
)
_chains = st.builds(lambda depth, count: _wide(_deep(depth, "1", '{"a":', "}"), count, "k"), st.integers(1, 31), _sizes)
_strings = st.builds(
    lambda part, count: '{"s":"' + part * min(count, 250_000 // len(part.encode())) + '"}',
    st.sampled_from(["x", "\\u0001", '\\"', "\\\\", "\\ud83d\\ude00", "\\ud800", "\\u0000", "é", "1e309,", "[{"]),
    st.sampled_from([1, 1_000, 250_000]),
)
_twice = st.builds(
    lambda value, count: _filled(f'"same":{value}', count, "{", "}"), st.sampled_from(["{}", "1"]), _sizes
)
_malformed = st.builds(lambda text: text[:-1], _many_numbers)

documents = st.one_of(_many_numbers, _wide_ones, _deep_ones, _brackets, _chains, _strings, _twice, _malformed)


def drawn(count: int) -> list[str]:
    """Returns so many documents."""
    made: list[str] = []

    @hypothesis.settings(
        max_examples=2 * count,
        phases=[hypothesis.Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(documents)
    def draw(text: str) -> None:
        made.append(text)

    draw()
    return made[:count]
