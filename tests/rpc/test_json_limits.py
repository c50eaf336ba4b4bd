"""JSON documents of callers: numbers that can be stored exactly and read by everybody, and how deep they nest."""

from __future__ import annotations

import itertools
import json
import time
from decimal import Decimal
from typing import cast

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from syncbeat.v1 import core_pb2, event_service_pb2, sync_service_pb2
from syncbeat_server.defaults import VALUE_OCTETS
from syncbeat_server.rpc.fastpath.compiled_validator import compile_fast_validator
from syncbeat_server.rpc.validation import value_checks
from syncbeat_server.sync.content.json_limits import document_fault

pytestmark = pytest.mark.unit

DIGITS_34 = "1234567890" * 3 + "1234"

KEPT = [
    "0",
    "-0",
    "0.000",
    "1e308",
    "9.999e308",  # more than a double holds, and kept exactly
    "-1e-307",
    "1" + "0" * 308,  # as a reader gets 1e308 back
    "1" + "0" * 40,
    "0." + "0" * 306 + "1",
    "0e-307",
    "0." + "0" * 307,
    DIGITS_34,
    "0.000" + DIGITS_34,
    DIGITS_34 + "e200",
    DIGITS_34 + "0" * 20,
    "1.50E+0000000000001",
    '"1e309 in a string"',
    '{"1e-16000": "\\"1e309"}',
    '["\\\\", 1e5]',
]
EXPONENT, DIGITS = "decimal exponent", "significant digits"
REFUSED = [
    ("1e309", EXPONENT),
    ("-1e309", EXPONENT),
    ("1e-308", EXPONENT),
    ("10e308", EXPONENT),
    ("0.1e-307", EXPONENT),
    ("1" + "0" * 309, EXPONENT),
    ("1e-16000", EXPONENT),
    ("1e-16383", EXPONENT),
    ("0e-16000", EXPONENT),
    ("0.0e-16000", EXPONENT),
    ("0e400", EXPONENT),
    ("1e" + "9" * 5_000, EXPONENT),
    ("1e-" + "9" * 5_000, EXPONENT),
    ("0." + "0" * 400 + "1", EXPONENT),
    ("9" * 5_000, EXPONENT),
    ("1." + "0" * 100 + "e-300", DIGITS),
    ("1." + "0" * 40, DIGITS),
    ("9" * 35, DIGITS),
    (DIGITS_34 + ".5", DIGITS),
    ('{"a": ["1", {"b": 1E+400}]}', EXPONENT),
    ('["\\\\", 1e309]', EXPONENT),
    ('["\\"", 1e309, "\\""]', EXPONENT),
    ("[" + ",".join(["1e308"] * 3_500) + "]", "written out"),
    ("[" + ",".join(["1e-307"] * 3_500) + "]", "written out"),
]
NO_DOCUMENTS = [
    "1e",
    "1e5e5",
    "01",
    "1.",
    ".5",
    "+1",
    "1e309e1",
    "-",
    "--1e309",
    "NaN",
    "Infinity",
    '"\\ud800"',
    '"\n"',
    "[1e309",
    '"1e309',
]


@pytest.mark.parametrize("text", KEPT, ids=lambda text: text[:20])
def test_json_number_within_bounds_is_accepted(text: str) -> None:
    assert document_fault(text, 32) == ""


@pytest.mark.parametrize(("text", "said"), REFUSED, ids=lambda text: text[:20])
def test_json_number_out_of_bounds_is_refused_with_the_bound(text: str, said: str) -> None:
    assert said in document_fault(text, 32)
    assert said in document_fault(f'{{"k": [{text}]}}', 32)


@pytest.mark.parametrize("text", NO_DOCUMENTS)
def test_json_malformed_stays_malformed_with_a_long_number(text: str) -> None:
    assert document_fault(text, 32) == "not a JSON document"
    assert document_fault(f"[1e309, {text}]", 32) == "not a JSON document"


numbers = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.one_of(st.just("0"), st.integers(1, 10**40).map(str), st.sampled_from(["1" + "0" * 30, "9" * 34, "9" * 35])),
    st.one_of(st.just(""), st.text("0123456789", min_size=1, max_size=40).map(".{}".format)),
    st.one_of(st.just(""), st.integers(-420, 420).map("e{}".format), st.sampled_from(["E+5", "e-0", "e0000000001"])),
)


@given(numbers)
def test_json_numbers_are_judged_like_decimal(text: str) -> None:
    exact = Decimal(text)
    _, digits, exponent = exact.as_tuple()
    assert isinstance(exponent, int)
    written = "".join(map(str, digits)).lstrip("0")
    significant = len(written.rstrip("0") if exponent >= 0 else written)
    good = significant <= 34 and -307 <= exact.adjusted() <= 308
    assert (document_fault(f"[{text}]", 32) == "") is good


@given(numbers)
def test_json_number_accepted_is_accepted_again_as_read(text: str) -> None:
    if document_fault(text, 0) == "":
        assert document_fault(format(Decimal(text), "f"), 0) == ""


trees = st.recursive(
    st.sampled_from([1, "[", '"{', "\\", None]),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("a["), inner, max_size=2)),
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(trees, st.integers(1, 5))
def test_json_depth_counts_containers_not_brackets_in_strings(value: object, most: int) -> None:
    assert (document_fault(json.dumps(value), most) == "") is (depth(value) <= most)


SLOW = {
    "exponents": "[" + ",".join(["1e0"] * 65_000) + "]",
    "fractions": "[" + ",".join(["1.5e1"] * 43_000) + "]",
    "near limit": "[" + ",".join(["1e19"] * 52_000) + "]",
    "nested": "[" + ",".join(["[" * 31 + "]" * 31] * 4_000) + "]",
    "unclosed": "[" * 262_000,
    "long numbers": "[" + ",".join(["1" * 34 + ".0"] * 7_000) + "]",
    "short numbers": "[1e0," + ",".join(["1"] * 130_000) + "]",
    "objects": "[" + ",".join(["{}"] * 87_000) + "]",
    "brackets": "[" + ",".join(["[[]]"] * 52_000) + "]",
    "strings": "[1e0," + ",".join(['""'] * 87_000) + "]",
    "escapes": '[1e0,"' + '\\"' * 131_000 + '"]',
    "backslashes": '[1e0,"' + "\\\\" * 131_000 + '"]',
    "one number": "9" * 262_000,
    "one fraction": "0." + "0" * 262_000,
    "one exponent": "1e" + "0" * 262_000,
    "dots in a string": '["' + "1." * 131_000 + '"]',
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_json_check_of_a_slow_document_takes_a_fraction_of_a_second(text: str) -> None:
    # 0.03 s at most by itself; several times as long on a busy machine; what was quadratic took minutes.
    took = []
    for _ in range(3):
        began = time.process_time()
        document_fault(text, 32)
        took.append(time.process_time() - began)
    assert min(took) < 0.5


PARTS = [
    *('"', '\\"', "\\\\", "\\", '"\\', "\\u0000", '"" ', '"1e309"', '"a":', "é"),
    *("[", "]", "{", "}", "[1e309,", ",", ":", " "),
    *("1", "0", ".", "e", "-", "+", "1.", "1e5", "1.1e1", "1e309", "1e-400", "e000", "9" * 34 + ",", "9" * 299 + ","),
]
BEGINNINGS = ["", '"', "[1e309,", '["', '1e309"', '[1e309,"', '{"a":1e309,"']
ENDS = ["", '"', "]", "1e309", '"]', "1e309]"]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part[:8])
def test_json_check_time_is_linear(part: str) -> None:
    """Hold the check to linear time: each quote of an unterminated string was tried as a start, 0.5 s for 16 KiB."""
    for repeated, beginning, end in itertools.product([part, part + '\\"', "1e5" + part], BEGINNINGS, ENDS):
        text = beginning + repeated * (16_384 // len(repeated)) + end
        took: list[float] = []
        while len(took) < 3 and min(took, default=1.0) > 0.1:  # 0.004 s at most by itself
            began = time.process_time()
            document_fault(text, 32)
            took.append(time.process_time() - began)
        assert min(took) < 0.1, (beginning, repeated, end)


@pytest.mark.parametrize(
    ("number", "count", "fits"),
    [
        ("1e10", 52_000, True),  # 12 characters each, with the comma
        ("1e30", 52_000, False),
        ("1.00000000001e12", 15_000, True),
        ("0.00000001e8", 20_000, True),
        ("1e-10", 43_000, True),
        ("1e-40", 43_000, False),
        ("1" + "0" * 34 + "e50", 6_700, True),
        ("1e300", 3_000, True),
        ("1e0300", 3_600, False),
    ],
)
def test_json_check_accepts_many_numbers_as_far_as_they_fit(number: str, count: int, fits: bool) -> None:
    text = "[" + ",".join([number] * count) + "]"
    assert len(text) < 1 << 18
    assert (len(format(Decimal(number), "f")) + 1) * count <= VALUE_OCTETS if fits else True
    assert (document_fault(text, 0) == "") is fits


@pytest.mark.parametrize(
    ("request_", "documents"),
    [
        (
            sync_service_pb2.PublishChangesRequest(
                changes=[core_pb2.NewChange(scope="s", key="k", merge_patch_json=text) for text in ("1e309", "[", "{}")]
            ),
            3,
        ),
        (event_service_pb2.IngestEventRequest(payload_json="["), 1),
        (
            event_service_pb2.IngestEventRequest(
                effects=event_service_pb2.EventEffects(changes=[core_pb2.NewChange(merge_patch_json="1e309")])
            ),
            1,
        ),
    ],
)
def test_json_document_is_checked_once(request_: Message, documents: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def counted(text: str, most_depth: int) -> str:
        looked_at.append(text)
        return document_fault(text, most_depth)

    monkeypatch.setattr(value_checks, "document_fault", counted)
    assert compile_fast_validator(cast(Descriptor, request_.DESCRIPTOR))(request_)
    assert len(looked_at) == documents
