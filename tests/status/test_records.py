"""Tests the records by which processes know of each other: exact, bounded, and read by other versions."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from syncbeat_server.status.model import BreakerState, BreakerStatus
from syncbeat_server.status.records import MAX_OCTETS, decode, encode
from tests.support.process_statuses import NOW, largest_status, process_status

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("status", [process_status(), largest_status(), replace(process_status(), limits=None)])
def test_record_is_read_as_it_was_written(status: object) -> None:
    assert decode(encode(status)) == status  # type: ignore[arg-type]  # each is a status
    assert decode(encode(status).encode()) == status  # type: ignore[arg-type]  # each is a status


def test_record_of_the_largest_status_fits() -> None:
    assert len(encode(largest_status())) <= MAX_OCTETS


def test_record_too_long_keeps_open_breakers_and_the_most_called_methods() -> None:
    long = "é" * 128
    breakers = tuple(
        BreakerStatus(f"{long}{number}", BreakerState.OPEN if number < 2 else BreakerState.CLOSED, 1, NOW)
        for number in range(20)
    )
    methods = tuple(replace(one, method=f"{long}{one.calls}") for one in largest_status().methods)
    text = encode(replace(largest_status(), breakers=breakers, methods=methods))
    assert len(text.encode()) <= MAX_OCTETS
    found = decode(text)
    assert found is not None
    assert {one.state for one in found.breakers} <= {BreakerState.OPEN}
    assert min(one.calls for one in found.methods) > 100, "the most called ones are kept"


def test_record_of_a_later_version_is_read() -> None:
    found = orjson.loads(encode(process_status()))
    found["hats"] = 3
    found["pool"]["hats"] = found["build"]["hats"] = found["methods"][0]["hats"] = "many"
    assert decode(orjson.dumps(found)) == process_status()


@pytest.mark.parametrize("lost", ["key", "name", "methods", "pool", "written_at", "streams", "limits"])
def test_record_that_lacks_something_is_no_status(lost: str) -> None:
    found = orjson.loads(encode(process_status()))
    del found[lost]
    assert decode(orjson.dumps(found)) is None


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "1", '"x"', "{", "\x00", "x" * (MAX_OCTETS + 1), '{"key": null}']
)
def test_record_that_is_none_is_no_status(text: str) -> None:
    assert decode(text) is None


@pytest.mark.parametrize("field", sorted(orjson.loads(encode(process_status()))))
def test_record_with_a_wrong_field_raises_nothing(field: str) -> None:
    found = orjson.loads(encode(process_status()))
    wrongs: list[object] = [None, True, -1, 2**60, 1e300, "", "x", [1], {}, [{}], [[]]]
    for wrong in wrongs:
        text = orjson.dumps({**found, field: wrong})
        status = decode(text)
        assert status is None or status.key == found["key"] or field == "key"
