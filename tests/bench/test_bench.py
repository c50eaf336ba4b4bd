"""Tests what the bench prints, and the frames it sends."""

from __future__ import annotations

import json
from typing import Any

import hpack
import pytest

from bench import h2load, wire
from bench.figure import Better, Figure, Options, Round, measure_pairs

pytestmark = pytest.mark.unit


def test_figure_is_one_json_line_with_the_ratio_of_its_rounds() -> None:
    ours = iter([Round(50.0, 400.0, 30.0), Round(90.0, 300.0, 20.0), Round(70.0, 200.0, 10.0)])
    theirs = iter([Round(100.0, 200.0), Round(100.0, 200.0), Round(200.0, 100.0)])

    figure = measure_pairs(
        "hint", "requests/s", Better.MORE, Options(rounds=3), lambda: next(ours), lambda: next(theirs), h2load=True
    )

    line = figure.line()
    assert "\n" not in line
    assert json.loads(line) == {
        "name": "hint",
        "value": 70.0,
        "unit": "requests/s",
        "better": "more",
        "baseline": 100.0,
        "ratio": 0.5,
        "runs": [[50.0, 100.0], [90.0, 100.0], [70.0, 200.0]],
        "cpu_us_per_request": 300.0,
        "database_cpu_us_per_request": 20.0,
        "baseline_cpu_us_per_request": 200.0,
        "h2load": True,
    }


def test_figure_without_a_baseline_has_no_ratio() -> None:
    told = json.loads(Figure("start", "s", Better.LESS, 1.25, None, [[1.25]]).line())
    assert (told["value"], told["baseline"], told["ratio"], told["runs"]) == (1.25, None, None, [[1.25]])


def test_hpack_frames_are_equal_with_and_without_the_table() -> None:
    decoder = hpack.Decoder()
    told = []
    for call, stream_id in (
        (wire.encode_call("/S/M", "one", b"ask", first=True), 1),
        (wire.encode_call("/S/M", "two", b"ask"), 3),
    ):
        received = call.frames(stream_id)
        length = int.from_bytes(received[:3], "big")
        assert received[3:9] == bytes((wire.HEADERS, 0x4)) + stream_id.to_bytes(4, "big")
        told.append(_headers(decoder, received[9 : 9 + length]))
        body = b"\x00\x00\x00\x00\x03ask"
        assert received[9 + length :] == wire.frame(wire.DATA, wire.END_STREAM, stream_id, body)

    first, second = told
    assert first["authorization"] == "Bearer one"
    assert second["authorization"] == "Bearer two"
    assert first[":path"] == "/S/M"
    assert {**first, "authorization": ""} == {**second, "authorization": ""}
    assert [list(fields)[:4] for fields in told] == [[":method", ":scheme", ":path", ":authority"]] * 2


def _headers(decoder: hpack.Decoder, block: bytes) -> dict[Any, Any]:
    return dict[Any, Any](decoder.decode(block))


@pytest.mark.parametrize("length", [126, 127, 128, 300, 70_000])
def test_hpack_encodes_long_values(length: int) -> None:
    received = wire.encode_call("/S/M", "t" * length, b"", first=True).frames(1)
    block = received[9 : 9 + int.from_bytes(received[:3], "big")]
    decoder = hpack.Decoder(max_header_list_size=1 << 20)
    assert _headers(decoder, block)["authorization"] == "Bearer " + "t" * length


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            """finished in 500.00ms, 20.00 req/s, 2KB/s
            requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout
            traffic: 2KB (2000) total, 1KB (700) headers (space savings 0%), 1KB (1400) data""",
            (h2load.Load(10, 0.5), 140.0),
        ),
        ("could not connect", "did not get through"),
        (
            """finished in 1.00s, 9 req/s, 1KB/s
            requests: 10 total, 10 started, 10 done, 9 succeeded, 1 failed, 0 errored, 0 timeout
            traffic: 1KB (1000) total, 1KB (700) headers (space savings 0%), 100B (100) data""",
            "met failures",
        ),
    ],
)
def test_h2load_output_is_parsed(output: str, expected: tuple[h2load.Load, float] | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(RuntimeError, match=expected):
            h2load.parse_output(output)
    else:
        assert h2load.parse_output(output) == expected
