"""A team that migrates by the guide of docs/migrate/, while phones of its users go on writing."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from syncbeat.blocking import SyncbeatClient
from syncbeat.v1 import directory_service_pb2
from syncbeat.v1.core_pb2 import NewChange, ScopeCursor
from syncbeat.v1.sync_service_pb2 import ListChangesRequest
from tests.docs.commands import Serving
from tests.docs.migration_guide import Reader, RealtimeDatabase, following, program_of
from tests.support.databases import open_database
from tests.support.fake_clock import wait_until

ALICE = "alice"
_OF_ALICE = 3  # chats; nobody may be in more than 2,000 scopes
_LOST = "-O0000020000000000000"
_DELETED = "-O0000000000000000000"
_REFUSED = {"message:a.b": "1", "message:a/b": "1", "message:inner": '{"a": [{".sv": 1}]}', "message:none": '{"": 1}'}
_TOO_LARGE = "x" * 300_000  # for the function, and for nothing else


def tree_of(chats: int) -> dict[str, object]:
    """Return a database with so many chats of two users each, and with what the map ignores."""
    return {
        "chats": {
            f"c{n}": {
                "title": f"Lunch {n} é",
                "messages": {f"-O{n:06}{m:013}": {"from": "a user", "text": "hi", "marks": [1, 2.5]} for m in range(3)},
            }
            for n in range(chats)
        },
        "members": {
            f"c{n}": {ALICE if n < _OF_ALICE else f"user-{2 * n}": True, f"user-{2 * n + 1}": True}
            for n in range(chats)
        },
        "presence": {ALICE: {"online": True}},
        "typing": {"c0": {ALICE: True}},
    }


def function_log(folder: Path, chats: int, one_in: int) -> None:
    """Write a day of the function's lines, as it prints them: of one chat in so many, two an hour."""
    began, count = datetime(2026, 11, 1, tzinfo=UTC), 48 * one_in
    lines = [
        {"time": (began + timedelta(days=n / count)).isoformat(), "scope": f"chat:c{n % chats}", "device": ALICE}
        for n in range(count)
    ]
    text = "\n".join(json.dumps({**line, "kind": "change", "lag_s": 0.2, "outcome": "x"}) for line in lines)
    (folder / "function.log").write_text(f"started\n{text}\n", encoding="utf-8")


async def until_the_next_second() -> None:
    """Wait, as the times that the commands take are whole seconds."""
    began = int(time.time())
    await wait_until(lambda: int(time.time()) > began)


async def let_an_hour_pass(database_url: str) -> None:
    """Make all values an hour older: what is younger than a minute is newer than an export that is begun now."""
    async with open_database(database_url, size=1, name="team") as database, database.transaction() as conn:
        hour = "interval '1 hour'"
        await conn.execute(f"UPDATE changes SET source_time = source_time - {hour}, changed_at = changed_at - {hour}")


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


class Team:
    """Follows the guide, while phones of its users write to the Realtime Database."""

    def __init__(self, served: Serving, folder: Path, chats: int = 3, writes: int = 20) -> None:
        """Make a database of so many chats; phones make so many writes while it is imported."""
        self.chats = chats
        self.writes = writes
        self.variables = {**served.exports(), "RTDB_TREE": str(folder / "tree.json"), "PROJECT": "our-project"}
        self.folder = folder
        self.database = RealtimeDatabase(folder / "tree.json", tree_of(chats))
        self.reader = Reader(folder, self.variables)
        self.triggers = program_of("dual-write.md", "on_value_written", self.variables).db_fn.TRIGGERS

    def backend(self) -> SyncbeatClient:
        return SyncbeatClient(self.variables["ADDRESS"], token=self.variables["SERVICE_TOKEN"], tls=False)

    async def follow(self) -> None:
        """Follow the guide from its first step to its last; no block of it may be left out."""
        self.prepare()
        await self.backfill()
        await self.verify()
        self.release()
        await self.cut_over()
        self.archive()
        assert self.reader.left_out() == []

    def prepare(self) -> None:
        """Steps 1 to 3, up to the function, which carries what phones write."""
        run, write = self.reader.run, self.database.write
        self.reader.save_files()
        run("index.md", "export PATH")
        assert int(run("index.md", "chmod")) > 0
        assert "SYNCBEAT_SERVICE_TOKENS" in run("index.md", "token service")
        assert "OK" in run("index.md", "smoke")
        assert f"would import {4 * self.chats} values, {2 * self.chats} members" in run("index.md", "--dry-run")
        one_in = max(1, self.chats // 50)  # a simulated day of more chats takes minutes
        function_log(self.folder, self.chats, one_in)
        told = run("load.md", "simulate", ONE_IN=str(one_in))
        polls, _, pushes = told.partition("with pushes")
        assert all(word in polls for word in ("requests/day", "fixed-30s", "adaptive-pull"))
        assert all(word in pushes for word in ("M requests/day", "wake-ups", "peak/mean", "GB/day", "adaptive-hybrid"))
        assert "pushes_beside" in run("load.md", "made_of")
        assert "PublishChanges" in run("dual-write.md", "status")
        write("chats/c0/title", "Dinner")
        write("chats/c0/title", "Supper")
        write("chats/c1/messages/-new", {"text": [0, 1]})
        write("chats/c1/messages/-new", None)
        write("members/c1/zoe", True)
        write("members/c1/zero", 0)

    @contextmanager
    def phones_writing(self) -> Iterator[None]:
        """Write titles of chats, and carry those writes, while the block runs and beyond it."""
        chance = random.Random(7)

        def write() -> None:
            for number in range(self.writes):
                chat = chance.randrange(_OF_ALICE, self.chats) if self.chats > _OF_ALICE else 2
                self.database.write(f"chats/c{chat}/title", f"written {number}")
                if number % 10 == 9:
                    self.database.deliver(self.triggers, seed=number)

        phones = threading.Thread(target=write)
        phones.start()
        try:
            yield
        finally:
            phones.join()

    async def backfill(self) -> None:
        """Step 4: what is written meanwhile stays, although it is carried in another order, and some of it twice."""
        assert "of 2 users 2 new ones, 2 identities, 1 disabled" in self.reader.run("index.md", "import-users")
        await until_the_next_second()
        with self.phones_writing():
            self.reader.run("index.md", "database:get")
            assert "imported into app 'default'" in self.reader.run("index.md", "import-rtdb")
        assert self.reader.run("index.md", "slo report")
        self.database.write("chats/c1/title", "after the export")
        assert self.database.deliver(self.triggers, seed=1) > 0
        with self.backend() as backend:
            assert stored(backend, "chat:c0")["title"] == "Supper"
            assert stored(backend, "chat:c1")["title"] == "after the export"
            assert "message:-new" not in stored(backend, "chat:c1")

    async def verify(self) -> None:
        """Step 5, with writes that the function has lost."""
        run, write = self.reader.run, self.database.write
        write("chats/c2/title", "lost", told=False)
        write(f"chats/c2/messages/{_LOST}", None, told=False)
        write("members/c2/zoe", True, told=False)
        write("chats/c2/messages/-large", _TOO_LARGE)
        self.database.deliver(self.triggers, seed=6)
        await let_an_hour_pass(self.variables["SYNCBEAT_DATABASE_URL"])
        found = run("index.md", "verify later.json")
        assert "differs: chats/c2/title" in found
        assert "exit 1:" in found
        assert "3 written, 0 left" in run("index.md", "reconcile", DELETIONS="1")
        missing = directory_service_pb2.ScopeMember(user_id="zoe", role=directory_service_pb2.ROLE_WRITER)
        with self.backend() as backend:
            added = directory_service_pb2.AddScopeMembersRequest(scope="chat:c2", members=[missing])
            backend.directory.AddScopeMembers(added)
        count = 4 * self.chats  # one is lost, and a large one came
        assert f"value: {count} here, {count} in the export; 0 differ" in run("index.md", "import-rtdb later.json")
        assert "after 0:00:0" in run("index.md", "soak", DURATION="5s", RATE="5")

    def release(self) -> None:
        """Steps 6 and 7, with the new version on one phone."""
        assert self.reader.run("releases.md", "status")
        register_phone(self.variables)
        assert "platform=IOS today=1 week=1 ever=1 users=1" in self.reader.run("releases.md", "adoption.py")
        assert self.reader.run("index.md", "slo report")

    async def cut_over(self) -> None:
        """Step 8: the mirror, which is restarted, and a key that versions of both kinds write."""
        database, path = self.database, "chats/c0/title"
        mirror: Any = program_of("dual-write.md", "def path_of", self.variables)
        with self.backend() as backend:
            with following(mirror, self.variables, self.folder, database):
                await wait_until(lambda: bool(mirror.Place(self.folder / "mirror.db").token()))
                backend.publish(NewChange(scope="chat:c0", key="title", merge_patch_json='"of the new version"'))
                await wait_until(lambda: database.read(path) == "of the new version")
                database.deliver(self.triggers, seed=2)
                assert stored(backend, "chat:c0")["title"] == "of the new version"
            self.publish_what_is_refused(backend)
            with following(mirror, self.variables, self.folder, database):
                database.write(path, "of an old one")
                database.reference(path).set("of the new version")  # by the mirror, before the function has carried it
                database.deliver(self.triggers, seed=3)
                await wait_until(lambda: database.read(path) == "of an old one", what="the later one is put back")
                database.deliver(self.triggers, seed=4)
                assert stored(backend, "chat:c0")["title"] == "of an old one"
                assert database.read("chats/c0/messages/q?%2E") == 1
                assert database.read("chats/c0/messages/inner") is None
                backend.publish(*[NewChange(scope="chat:c0", key=key, deleted=True) for key in _REFUSED])
                backend.publish(NewChange(scope="chat:c0", key=f"message:{_DELETED}", deleted=True))
                await wait_until(lambda: database.read(f"chats/c0/messages/{_DELETED}") is None)
                await self.delete_by_an_old_version(backend)

    async def delete_by_an_old_version(self, backend: SyncbeatClient) -> None:
        """A phone deletes what the mirror writes over before the function has carried the deletion."""
        database, path = self.database, "chats/c1/title"
        backend.publish(NewChange(scope="chat:c1", key="title", merge_patch_json='"of the new version"'))
        await wait_until(lambda: database.read(path) == "of the new version")
        database.write(path, None)
        database.reference(path).set("of the new version")
        database.deliver(self.triggers, seed=5)
        await wait_until(lambda: database.read(path) is None, what="the deletion is put back")

    def publish_what_is_refused(self, backend: SyncbeatClient) -> None:
        """Publish what any WRITER may, and the Realtime Database refuses, and what only looks so."""
        one = [NewChange(scope="chat:c0", key=key, merge_patch_json=value) for key, value in _REFUSED.items()]
        backend.publish(*one, NewChange(scope="chat:c0", key="message:q?%2E", merge_patch_json="1"))

    def archive(self) -> None:
        """Step 9, and a user who wants to be forgotten."""
        assert "0 differ" in self.reader.run("index.md", "last.json")
        archived = json.loads((self.folder / "archive.json").read_text(encoding="utf-8"))
        assert archived["chats"]["c0"]["title"] == "of an old one"
        self.reader.run("index.md", "user export")
        assert json.loads((self.folder / "alice.json").read_text(encoding="utf-8"))["user_id"] == ALICE
