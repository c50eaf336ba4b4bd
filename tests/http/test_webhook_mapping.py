"""Mappings of webhooks: what an expression may cost, and what becomes of payloads that do not fit."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from syncbeat_server.app.webhooks.ingest import event_document
from syncbeat_server.defaults import SignatureScheme, TimeFormat
from syncbeat_server.http.webhooks import expressions
from syncbeat_server.http.webhooks.expressions import Expression, ExpressionFault
from syncbeat_server.http.webhooks.mapping import map_payload
from syncbeat_server.http.webhooks.model import Delivery, MappedEvent, MappingFault
from syncbeat_server.rpc.convert.event_documents import event_request, source_event, source_principal
from tests.support.fake_clock import START
from tests.support.webhooks import PLAIN_MAPPING, source_of

pytestmark = pytest.mark.unit

DELIVERY = Delivery("msg_1", int(START.timestamp()), "0" * 64)


def mapped(mapping: Any = PLAIN_MAPPING, **fields: object) -> MappedEvent | None:
    body = {"id": "evt_1", "type": "user.created", "subject": "ann", "at": int(START.timestamp()), **fields}
    return map_payload(mapping, orjson.dumps(body), DELIVERY, START)


def test_payload_becomes_an_event() -> None:
    found = mapped()
    assert found is not None
    assert (found.event_id, found.type, found.subject, found.ordering_key) == ("evt_1", "user.created", "ann", "")
    assert (found.occurred, dict(found.effects)) == (START, {})
    assert orjson.loads(found.payload_json)["id"] == "evt_1"
    without = mapped(replace(PLAIN_MAPPING, keep_payload=False))
    assert without is not None
    assert without.payload_json == ""


def test_type_without_effects_and_null_effects_are_ignored() -> None:
    mapping = replace(PLAIN_MAPPING, effects={"user.created": Expression("body.missing")})
    assert mapped(mapping) is None
    assert mapped(mapping, type="user.deleted") is None
    assert mapped(replace(mapping, effects={**mapping.effects, "*": Expression("`{}`")}), type="user.deleted")


@pytest.mark.parametrize(
    ("form", "value", "expected"),
    [
        (TimeFormat.UNIX_SECONDS, 1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (TimeFormat.UNIX_SECONDS, "1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (TimeFormat.UNIX_MILLISECONDS, 1_700_000_000_500, datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)),
        (TimeFormat.ISO, "2023-11-14T22:13:20Z", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (TimeFormat.ISO, "2023-11-15T00:13:20.123456+02:00", datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=UTC)),
        (TimeFormat.ISO, None, None),
    ],
)
def test_occurred_is_converted(form: TimeFormat, value: object, expected: datetime | None) -> None:
    found = mapped(replace(PLAIN_MAPPING, occurred_as=form), at=value)
    assert found is not None
    assert found.occurred == expected


@pytest.mark.parametrize(
    ("form", "value"),
    [
        (TimeFormat.UNIX_SECONDS, 1_700_000_000_500),
        (TimeFormat.UNIX_MILLISECONDS, 1_700_000_000),
        (TimeFormat.UNIX_SECONDS, -1),
        (TimeFormat.UNIX_SECONDS, True),
        (TimeFormat.UNIX_SECONDS, "soon"),
        (TimeFormat.UNIX_MILLISECONDS, 1e300),
        (TimeFormat.ISO, "2023-11-14T22:13:20"),
        (TimeFormat.ISO, "0001-01-01T00:00:00+14:00"),
        (TimeFormat.ISO, "0001-01-01T00:00:00Z"),
        (TimeFormat.ISO, "1969-12-31T23:59:59.999999Z"),
        (TimeFormat.ISO, "9999-12-31T23:59:59.999999Z"),
        (TimeFormat.ISO, 1_700_000_000),
        (TimeFormat.ISO, "yesterday"),
    ],
)
def test_occurred_in_another_form_is_a_fault(form: TimeFormat, value: object) -> None:
    with pytest.raises(MappingFault, match=r"^occurred: "):
        mapped(replace(PLAIN_MAPPING, occurred_as=form), at=value)


@pytest.mark.parametrize("text", ["nan", "NaN", "Infinity", "-inf", "1e999"])
@pytest.mark.parametrize("setting", ["occurred", "event_id", "effects"])
def test_number_that_json_does_not_have_is_a_fault(setting: str, text: str) -> None:
    number = Expression("to_number(body.at)")
    nested: Any = {"*": Expression("{sent: [to_number(body.at)]}")}
    changed: dict[str, Any] = {setting: nested if setting == "effects" else number}
    for form in TimeFormat:
        with pytest.raises(MappingFault, match="is no JSON"):
            mapped(replace(PLAIN_MAPPING, occurred_as=form, **changed), at=text)


def test_occurred_ahead_of_the_clock_or_too_old_is_a_fault() -> None:
    now = int(START.timestamp())
    assert mapped(at=now + 300)
    with pytest.raises(MappingFault, match="ahead of the service's clock"):
        mapped(at=now + 301)
    young = replace(PLAIN_MAPPING, max_age_s=3_600.0)
    assert mapped(young, at=now - 3_600)
    with pytest.raises(MappingFault, match="ago"):
        mapped(young, at=now - 3_601)
    with pytest.raises(MappingFault, match="the payload has none"):
        mapped(young, at=None)
    assert mapped(young.without_max_age(), at=int((START - timedelta(days=900)).timestamp()))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"id": None}, "id: the payload has none"),
        ({"id": 1.5}, "id: want text"),
        ({"id": True}, "id: want text"),
        ({"type": ["a"]}, "type: want text"),
        ({"subject": {}}, "subject: want text"),
    ],
)
def test_field_of_another_kind_is_a_fault(fields: dict[str, object], fault: str) -> None:
    with pytest.raises(MappingFault, match=fault):
        mapped(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b"\xff", b'{"a": 1e999}', b"payload=%7B%7D"])
def test_body_that_is_no_object_is_a_fault(body: bytes) -> None:
    with pytest.raises(MappingFault, match=r"^body: "):
        map_payload(PLAIN_MAPPING, body, DELIVERY, START)


@pytest.mark.parametrize("text", ["\\ud800", "\\ud800x", "\\udc00", "\\ud800\\ud800", "\\ud83d\\u0041"])
def test_half_of_a_surrogate_pair_is_told_in_words(text: str) -> None:
    for body in (f'{{"id": "{text}"}}', f'{{"{text}": 1}}'):
        with pytest.raises(MappingFault, match=r"^body: a text with half of a surrogate pair"):
            map_payload(PLAIN_MAPPING, body.encode(), DELIVERY, START)
    with pytest.raises(MappingFault, match=r"^body: no JSON in UTF-8"):
        map_payload(PLAIN_MAPPING, b'{"id": "\xed\xa0\x80"}', DELIVERY, START)


def test_whole_number_is_taken_as_an_id() -> None:
    found = mapped(id=17, subject=18)
    assert found is not None
    assert (found.event_id, found.subject) == ("17", "18")


def test_fault_repeats_nothing_of_the_payload() -> None:
    with pytest.raises(MappingFault) as refused:
        mapped(replace(PLAIN_MAPPING, effects={"*": Expression("sort(body.secret)")}), secret=["geheim", 1])
    assert "geheim" not in str(refused.value)


# -------------------------------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    "text",
    [
        "",
        "body.",
        "no_such_function(body)",
        "a" * (expressions.MOST_CHARACTERS + 1),
        "[" + ",".join(["body"] * (expressions.MOST_NODES + 1)) + "]",
        "(" * 1_000 + "body" + ")" * 1_000,
        "!" * 2_000 + "body",
    ],
    ids=["empty", "malformed", "function", "long", "nodes", "parentheses", "negations"],
)
def test_expression_beyond_its_bounds_is_refused(text: str) -> None:
    with pytest.raises(ExpressionFault):
        Expression(text)


LARGE = {"items": [{"id": number, "text": "x" * 8} for number in range(8_000)], "text": "x" * 200_000}
COSTLY = {
    "quadratic filter": "items[?contains(to_string(@), '1')] | [?contains(to_string(@), '2')].[@, @, @]",
    "doubling lists": "items" + "".join(" | [@, @][]" for _ in range(30)),
    "doubling depth": "@" + "".join(" | [@, @]" for _ in range(20)) + " | to_string(@)",
    "comparing all": "items[?@ != `{}`] | [?@ != `[]`] | [?@ != `1`]",
    "joining by a long text": "join(text, items[].text)",
    "a text a row": "items[].[to_string(@), to_string(@)]",
    "sorting again and again": "items" + "".join(" | sort_by(@, &id)" for _ in range(30)),
}


@pytest.mark.parametrize("text", COSTLY.values(), ids=COSTLY)
def test_costly_expression_is_stopped(text: str) -> None:
    began = time.perf_counter()
    with pytest.raises(ExpressionFault, match=r"steps|KiB"):
        Expression(text).evaluate(LARGE)
    assert time.perf_counter() - began < 5.0, "a quarter of a second, on an idle machine"


def test_large_result_is_refused() -> None:
    with pytest.raises(ExpressionFault, match="KiB"):
        Expression("[text, text]").evaluate(LARGE)


def test_expression_of_a_usual_size_is_evaluated() -> None:
    assert Expression("items[?id == `7`].text | [0]").evaluate({"items": LARGE["items"][:500]}) == "x" * 8
    assert Expression("length(items)").evaluate({"items": [1, 2]}) == 2
    assert Expression("sort_by(items, &id)[0].id").evaluate({"items": [{"id": 2}, {"id": 1}]}) == 1
    assert Expression("a > `1` && b == 'x' || not_null(c, d)").evaluate({"a": 0, "d": "y"}) == "y"


def test_redelivery_at_another_time_has_the_same_content() -> None:
    source = replace(
        source_of(SignatureScheme.SVIX), mapping=replace(PLAIN_MAPPING, occurred=Expression("delivery.time"))
    )
    principal = source_principal(source.app_id, source.name, source.methods)
    contents = set()
    for late_s in (0, 60):
        found = map_payload(source.mapping, orjson.dumps({"id": "e1", "type": "t"}), later(late_s), START)
        assert found is not None
        contents.add(source_event(event_request(event_document(source, found)), principal, {}).content_hash)
    assert len(contents) == 1


def later(seconds: int) -> Delivery:
    return replace(DELIVERY, time=int(START.timestamp()) + seconds)
