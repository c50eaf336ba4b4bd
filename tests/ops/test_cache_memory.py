"""The memory that caches may take: of the machine or the container, whichever has less."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncbeat_server.ops import cache_memory

pytestmark = pytest.mark.unit

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "processes", "mib"),
    [(GIB // 8, 1, 64), (GIB, 1, 256), (GIB, 2, 128), (4 * GIB, 1, 1024), (64 * GIB, 4, 1024)],
)
def test_cache_memory_is_a_quarter_within_bounds(limit: int, processes: int, mib: int) -> None:
    assert cache_memory.default_cache_mib(limit, processes) == mib


def test_cache_memory_follows_the_container(tmp_path: Path) -> None:
    missing, unlimited, limited = tmp_path / "missing", tmp_path / "unlimited", tmp_path / "limited"
    unlimited.write_text("max\n")
    limited.write_text(f"{GIB // 4}\n")
    machine = cache_memory.memory_limit_bytes((missing, unlimited))
    assert machine > GIB // 4
    assert cache_memory.memory_limit_bytes((missing, unlimited, limited)) == GIB // 4


def test_cache_of_64_mib_holds_ten_thousand_devices() -> None:
    assert 10_000 < cache_memory.devices_in(64) < 11_000
