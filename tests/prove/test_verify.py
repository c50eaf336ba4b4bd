"""Verify finds one planted difference among a million values, and reconcile mends it and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.databases import DatabaseUrls
from tests.support.planted_exports import EXPORTED, MAP, PER_CHAT, damage, plant, plant_large, run, untrue, write_export

pytestmark = pytest.mark.prove

VALUES = int(os.environ.get("VERIFY_VALUES", "1000000"))
MOST_RSS_MIB = 200


@pytest.mark.timeout(7_200)
async def test_verify_finds_one_difference_and_reconcile_mends_it(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, record: Callable[[str, dict[str, object]], None]
) -> None:
    (tmp_path / "map.toml").write_text(MAP)
    export = tmp_path / "export.json"
    write_export(export, VALUES)
    await plant(database_urls, VALUES)
    options = ("export.json", "--map", "map.toml")

    equal = await run(database_urls, redis_url, tmp_path, "verify", *options)
    assert equal.status == 0, equal
    planted = VALUES * 2 // 3
    await damage(database_urls, planted)
    found = await run(database_urls, redis_url, tmp_path, "verify", *options)
    assert found.status == 1, found
    chat = f"c{planted // PER_CHAT}"
    assert (
        found.output.splitlines()[0] == f"differs: chats/{chat}/m{planted} at x (value 'm{planted}' of 'chat:{chat}')"
    )
    assert f"value: {VALUES} here, {VALUES} in the export; 1 differ, 0 newer here" in found.output

    later = "2026-11-02T00:00:00Z"
    mended = await run(database_urls, redis_url, tmp_path, "reconcile", *options, "--source-time", later, "--yes")
    assert (mended.status, "1 written, 0 left" in mended.errors) == (0, True), mended
    assert await untrue(database_urls) == ([], [f"m{planted}"])

    written = await run(database_urls, redis_url, tmp_path, "export", "--map", "map.toml", "-o", "again.json")
    assert written.status == 0, written
    again = await run(database_urls, redis_url, tmp_path, "verify", "again.json", "--map", "map.toml")
    assert again.status == 0, again
    plain = await run(database_urls, redis_url, tmp_path, "export", "-o", "app.json")
    assert plain.status == 0, plain

    ran = {"verify": equal, "reconcile": mended, "export_tree": written, "export_document": plain}
    record(
        "verify",
        {
            "values": VALUES,
            "export_mib": round(export.stat().st_size / (1 << 20), 1),
            "exported": EXPORTED,
            "differences_planted": 1,
            "differences_found": 1,
            "keys_written": 1,
            **{f"{name}_s": round(one.seconds, 1) for name, one in ran.items()},
            **{f"{name}_rss_mib": round(one.rss_mib, 1) for name, one in ran.items()},
        },
    )
    assert max(one.rss_mib for one in ran.values()) < MOST_RSS_MIB


@pytest.mark.timeout(1_800)
async def test_large_values_are_exported_and_verified_in_bounded_memory(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path, record: Callable[[str, dict[str, object]], None]
) -> None:
    values, octets = 300, 1_000_000
    (tmp_path / "map.toml").write_text(MAP)
    await plant_large(database_urls, values, octets)
    tree = await run(database_urls, redis_url, tmp_path, "export", "--map", "map.toml", "-o", "tree.json")
    plain = await run(database_urls, redis_url, tmp_path, "export", "-o", "app.json")
    equal = await run(database_urls, redis_url, tmp_path, "verify", "tree.json", "--map", "map.toml")
    ran = {"export_tree": tree, "export_document": plain, "verify": equal}
    assert [one.status for one in ran.values()] == [0, 0, 0], ran
    size = (tmp_path / "tree.json").stat().st_size
    assert size > values * octets
    record(
        "verify-large",
        {
            "values": values,
            "octets_of_each": octets,
            "export_mib": round(size / (1 << 20), 1),
            **{f"{name}_rss_mib": round(one.rss_mib, 1) for name, one in ran.items()},
        },
    )
    assert max(one.rss_mib for one in ran.values()) < MOST_RSS_MIB
