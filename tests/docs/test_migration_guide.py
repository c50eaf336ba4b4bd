"""The guide from the Realtime Database, followed with nothing but its text against what `make run` serves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from syncbeat.blocking import SyncbeatClient
from syncbeat.v1 import directory_service_pb2
from syncbeat.v1.core_pb2 import NewChange, ScopeCursor
from syncbeat.v1.sync_service_pb2 import ListChangesRequest
from tests.docs.commands import Serving, serving
from tests.docs.migration_guide import GUIDE, Reader, RealtimeDatabase, commands_of, following, program_of
from tests.support.fake_clock import wait_until

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(600)]

ALICE = "alice"


@pytest.fixture
def served() -> Iterator[Serving]:
    """A deployment of this test's own: `verify` looks at all of it."""
    with serving(["demo", "--serve"], "RevokeUser", {"SYNCBEAT_LISTEN": "127.0.0.1:0"}) as running:
        yield running


def tree_of(chats: int) -> dict[str, object]:
    """A database with so many chats of two users each, and with what the map ignores."""
    return {
        "chats": {
            f"c{n}": {
                "title": f"Lunch {n} é",
                "messages": {f"-O{n:06}{m:013}": {"from": ALICE, "text": "hi", "marks": [1, 2.5]} for m in range(3)},
            }
            for n in range(chats)
        },
        "members": {f"c{n}": {ALICE: True, f"user-{n}": True} for n in range(chats)},
        "presence": {ALICE: {"online": True}},
        "typing": {"c0": {ALICE: True}},
    }


def function_log(folder: Path) -> None:
    """Write a day of the function's lines, as it prints them."""
    began = datetime(2026, 11, 1, tzinfo=UTC)
    lines = [
        {"time": (began + timedelta(minutes=30 * n)).isoformat(), "scope": f"chat:c{n % 3}", "device": ALICE}
        for n in range(48)
    ]
    text = "\n".join(json.dumps({**line, "kind": "change", "lag_s": 0.2, "outcome": "x"}) for line in lines)
    (folder / "function.log").write_text(f"started\n{text}\n", encoding="utf-8")


def until_the_next_second() -> None:
    """Wait, as the times that the commands take are whole seconds."""
    began = int(time.time())
    while int(time.time()) == began:
        time.sleep(0.05)  # the machine's clock itself is what is waited for


def stored(client: SyncbeatClient, scope: str) -> dict[str, object]:
    """The values of a scope."""
    page = client.sync.ListChanges(ListChangesRequest(cursor=ScopeCursor(scope=scope), page_size=1_000))
    return {one.key: json.loads(one.value_json) for one in page.changes if not one.deleted}


def register_phone(variables: dict[str, str]) -> None:
    """Start the new version of the app on alice's phone."""
    phone = directory_service_pb2.RegisterDeviceRequest(
        device_id="phone", platform=directory_service_pb2.PLATFORM_IOS, registration_token="phone-of-alice"
    )
    with SyncbeatClient(variables["ADDRESS"], token=variables["USER_TOKEN"], tls=False) as app:
        app.directory.RegisterDevice(phone)


async def test_migration_guide_is_followed_to_its_end(served: Serving, tmp_path: Path) -> None:
    variables = {**served.exports(), "RTDB_TREE": str(tmp_path / "tree.json"), "PROJECT": "our-project"}
    database = RealtimeDatabase(tmp_path / "tree.json", tree_of(3))
    reader = Reader(tmp_path, variables)
    reader.save_files()
    page = "index.md"
    assert "SYNCBEAT_SERVICE_TOKENS" in reader.run(page, "token service")
    assert "OK" in reader.run(page, "smoke")
    assert "would import 12 values, 6 members" in reader.run(page, "--dry-run")

    function_log(tmp_path)
    assert "adaptive-hybrid" in reader.run("load.md", "simulate")

    triggers = program_of("dual-write.md", "on_value_written", variables).db_fn.TRIGGERS
    assert len(triggers) == 3
    assert reader.run("dual-write.md", "status")
    database.write("chats/c0/title", "Dinner")
    database.write("chats/c0/title", "Supper")
    database.write("chats/c1/messages/-new", {"text": [0, 1]})
    database.write("chats/c1/messages/-new", None)
    database.write("members/c1/zoe", True)

    await until_the_next_second()
    assert "imported into app 'default'" in reader.run(page, "import-rtdb")
    assert reader.run(page, "slo report")
    database.write("chats/c1/title", "after the export")
    assert database.deliver(triggers, seed=1) == 8
    with SyncbeatClient(served.exports()["ADDRESS"], token=served.exports()["SERVICE_TOKEN"], tls=False) as backend:
        assert stored(backend, "chat:c0")["title"] == "Supper"
        assert stored(backend, "chat:c1")["title"] == "after the export"
        assert "message:-new" not in stored(backend, "chat:c1")

    database.write("chats/c2/title", "lost", told=False)
    database.write("chats/c2/messages/-O0000020000000000000", None, told=False)
    database.write("members/c2/zoe", True, told=False)
    await until_the_next_second()
    found = reader.run(page, "verify later.json")
    assert "differs: chats/c2/title" in found
    assert found.rstrip().endswith("they differ")
    assert "2 written, 0 left" in reader.run(page, "reconcile")
    assert "value: 11 here, 11 in the export; 0 differ" in reader.run(page, "import-rtdb later.json")
    assert "after 0:00:0" in reader.run(page, "soak", DURATION="5s", RATE="5")

    assert reader.run("releases.md", "status")
    register_phone(variables)
    assert "platform=IOS today=1 week=1 ever=1 users=1" in reader.run("releases.md", "adoption.py")
    assert reader.run(page, "slo report")

    mirror = program_of("dual-write.md", "def path_of", variables)
    mirror.TOKEN = tmp_path / "mirror.token"
    with (
        SyncbeatClient(served.exports()["ADDRESS"], token=served.exports()["SERVICE_TOKEN"], tls=False) as backend,
        following(mirror, served.exports()["ADDRESS"], served.exports()["SERVICE_TOKEN"], database),
    ):
        await wait_until(mirror.TOKEN.exists)
        backend.publish(NewChange(scope="chat:c0", key="title", merge_patch_json='"by the new version"'))
        await wait_until(lambda: database.read("chats/c0/title") == "by the new version")
        database.deliver(triggers, seed=2)
        assert stored(backend, "chat:c0")["title"] == "by the new version"
        database.write("chats/c0/title", "by an old one")
        database.reference("chats/c0/title").set("by the new version")  # the mirror, which knew of nothing yet
        database.deliver(triggers, seed=3)
        await wait_until(lambda: database.read("chats/c0/title") == "by an old one", what="the later one is put back")
        database.deliver(triggers, seed=4)
        assert stored(backend, "chat:c0")["title"] == "by an old one"
        backend.publish(NewChange(scope="chat:c0", key="message:-O0000000000000000000", deleted=True))
        await wait_until(lambda: database.read("chats/c0/messages/-O0000000000000000000") is None)

    assert "0 differ" in reader.run(page, "last.json")
    archived = json.loads((tmp_path / "archive.json").read_text(encoding="utf-8"))
    assert archived["chats"]["c0"]["title"] == "by an old one"
    reader.run(page, "user export")
    assert json.loads((tmp_path / "alice.json").read_text(encoding="utf-8"))["user_id"] == ALICE
    assert reader.left_out() == []


def test_migration_guide_says_how_to_take_each_step_back() -> None:
    text = (GUIDE / "index.md").read_text(encoding="utf-8")
    for step in ("4. Backfill", "5. Verify", "7. Read from Syncbeat", "8. Cut over"):
        section = text.partition(f"## {step}")[2].partition("\n## ")[0]
        assert "**Go on**" in section, step
        assert "oll back" in section, step
    assert "reconcile" in "".join(commands_of("index.md"))
