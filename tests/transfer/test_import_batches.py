"""Values of an export are checked before any statement: size, numbers, characters."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from syncbeat_server.sync.model import NewChange
from syncbeat_server.transfer.importing.batches import MAX_BATCH_OCTETS, BatchReader, ImportSource, checked_text
from syncbeat_server.transfer.mapping.map_file import parse_map
from syncbeat_server.transfer.model import Json, MisfitReason
from syncbeat_server.transfer.rtdb.shapes import json_text
from tests.support.rtdb_trees import push_id

pytestmark = pytest.mark.unit

_BEGUN = datetime(2026, 1, 31, tzinfo=UTC)
_MAP = """
version = 1
[[value]]
path = "m/{m}"
scope = "m"
key = "{m}"
source_time = { push_id = "m" }
[[value]]
path = "v/{v}"
scope = "v"
key = "{v}"
"""


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"n": Decimal("0.1"), "t": "1e999 \\u0000"}, '{"n":0.1,"t":"1e999 \\\\u0000"}'),
        (Decimal(10**33), "1" + "0" * 33),
        (Decimal("1E+308"), "1E+308"),
        (Decimal("1E+309"), MisfitReason.NUMBER),
        (Decimal("1E-308"), MisfitReason.NUMBER),
        (Decimal("1" * 35), MisfitReason.NUMBER),
        ({"k": "a\0b"}, MisfitReason.NUL),
        ({"a\0": 1}, MisfitReason.NUL),
        ("x" * ((1 << 20) - 12), '"' + "x" * ((1 << 20) - 12) + '"'),  # jsonb has three words before it
        ("x" * ((1 << 20) - 11), MisfitReason.TOO_LARGE),
        ("é" * (1 << 19), MisfitReason.TOO_LARGE),
    ],
)
def test_values_are_checked_exactly(value: Json, found: str | MisfitReason) -> None:
    assert checked_text(value) == found


def _reader(tree: Json, done: int = 0) -> BatchReader:
    return BatchReader(ImportSource(parse_map(_MAP), "app", _BEGUN), io.BytesIO(json_text(tree).encode()), done)


def test_batches_are_bounded_by_places_and_octets() -> None:
    large: dict[str, Json] = {str(10 + number): "x" * (MAX_BATCH_OCTETS // 4) for number in range(10)}
    reader = _reader({"v": large})

    sizes = []
    while (batch := reader.next_batch(100)) is not None:
        sizes.append(len(batch.items))

    assert sizes == [4, 4, 2]


def test_places_that_are_done_are_skipped() -> None:
    tree: Json = {"v": {f"k{number}": number for number in range(10)}}

    batch = _reader(tree, done=7).next_batch(100)

    assert batch is not None
    assert batch.places == 10
    assert [item.path[-1] for item in batch.items] == ["k7", "k8", "k9"]
    assert _reader(tree, done=10).next_batch(100) is None


def test_no_value_is_newer_than_its_export() -> None:
    early = int((_BEGUN - timedelta(days=1)).timestamp() * 1_000)
    late = int((_BEGUN + timedelta(days=1)).timestamp() * 1_000)

    batch = _reader({"m": {push_id(early): 1, push_id(late): 2}}).next_batch(9)

    assert batch is not None
    times = [item.target.source_time for item in batch.items if isinstance(item.target, NewChange)]
    assert times == [_BEGUN - timedelta(days=1), _BEGUN]
