"""A deployment that loses its database and gets it back from a dump, as docs/restore.md says, and never stops."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration

from syncbeat import SmartSync, SyncBatch, SyncbeatClient
from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2
from syncbeat.v1 import sync_service_pb2 as pb
from syncbeat_devtools.demo.stage import Stage
from syncbeat_devtools.embedded.binaries import find_binaries
from tests.support.databases import DatabaseUrls, create_database, drop_database

PATIENCE_S = 120.0


def postgres_tool(name: str, *arguments: str) -> None:
    """Run a program of PostgreSQL's to its end."""
    program = find_binaries().postgres_folder / "bin" / name
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def new_epoch(stage: Stage, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's command with the settings of the deployment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SYNCBEAT_")}
    return subprocess.run(
        [sys.executable, "-m", "syncbeat_server.cli", "new-epoch", *arguments],
        env={**own, **stage.settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def dump(urls: DatabaseUrls, file: Path) -> None:
    """Take a backup."""
    await asyncio.to_thread(postgres_tool, "pg_dump", "--format=custom", f"--file={file}", urls.admin_url)


async def restore(stage: Stage, urls: DatabaseUrls, file: Path) -> None:
    """Lose the database, whoever is connected, and put the backup in its place."""
    await drop_database(stage.stores, urls.name)
    await create_database(stage.stores, urls.name)
    await asyncio.to_thread(postgres_tool, "pg_restore", "--exit-on-error", f"--dbname={urls.admin_url}", str(file))


@dataclass
class Device:
    """A device with a `SmartSync`: what it keeps, by scope and key."""

    user: str
    sync: SmartSync
    kept: dict[str, dict[str, str]] = field(default_factory=dict)
    drops: int = 0

    @classmethod
    def of(cls, client: SyncbeatClient, user: str, *, streams: bool) -> Device:
        async def apply(batch: SyncBatch) -> None:
            if batch.drop:
                device.drops += 1
                device.kept.pop(batch.scope, None)
            scope = device.kept.setdefault(batch.scope, {})
            scope.update((change.key, change.value_json) for change in batch.changes)

        device = cls(user, SmartSync(client, "phone", on_changes=apply, streams=streams))
        return device


class Deployment:
    """Users who share scopes, each with a phone: in each scope one that streams, one that polls and one offline."""

    def __init__(self, stage: Stage, scopes: int) -> None:
        self.stage = stage
        self.scopes = [f"scope {number}" for number in range(scopes)]
        self.devices: list[Device] = []
        self.resets = 0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Deployment:
        self.stage.settings["SYNCBEAT_STALENESS_TARGET_S"] = "3"
        await self.stage.start_all()
        self.backend = await self._stack.enter_async_context(self.stage.client(self.stage.identity.service_token))
        for number, scope in enumerate(self.scopes):
            users = [f"{who}-{number}" for who in ("streams", "polls", "offline")]
            members = [
                directory_service_pb2.ScopeMember(user_id=user, role=directory_service_pb2.ROLE_READER)
                for user in users
            ]
            await self.backend.directory.AddScopeMembers(
                directory_service_pb2.AddScopeMembersRequest(scope=scope, members=members)
            )
            for user in users:
                await self.backend.directory.RegisterDevice(
                    directory_service_pb2.RegisterDeviceRequest(
                        user_id=user,
                        device_id="phone",
                        platform=directory_service_pb2.PLATFORM_ANDROID,
                        registration_token=f"token-of-{user}" if user.startswith("offline") else "",
                    )
                )
            for user in users[:2]:
                client = await self._stack.enter_async_context(self.stage.client(self.stage.user_token(user)))
                device = Device.of(client, user, streams=user.startswith("streams"))
                await self._stack.enter_async_context(device.sync)
                self.devices.append(device)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def publish(self, prefix: str, count: int, *, wakes: bool = False) -> None:
        """Publish so many changes to each scope, one by one."""
        for number in range(count):
            await asyncio.gather(*(self._publish(scope, f"{prefix}{number}", wakes) for scope in self.scopes))

    async def _publish(self, scope: str, key: str, wakes: bool) -> None:
        change = core_pb2.NewChange(scope=scope, key=key, merge_patch_json=f'"{key}"')
        trigger = core_pb2.SyncTrigger(type="t", dedupe_window=Duration(seconds=5)) if wakes else None
        await self.backend.sync.PublishChanges(pb.PublishChangesRequest(changes=[change], trigger=trigger))

    async def notify(self, request_id: str) -> Any:
        """Send a message, which is done once for each `request_id`."""
        return await self.backend.push.SendNotification(
            push_service_pb2.SendNotificationRequest(
                request_id=request_id,
                user_ids=core_pb2.UserIds(ids=["offline-0"]),
                notification=core_pb2.Notification(title="a message"),
            )
        )

    async def truth(self, scope: str) -> tuple[str, dict[str, str]]:
        """A scope's epoch, and the values of its keys."""
        page = await self.backend.sync.ListChanges(
            pb.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope=scope), page_size=1_000)
        )
        assert not page.more
        return page.next_cursor.epoch, {change.key: change.value_json for change in page.changes}

    async def wrong(self) -> list[str]:
        """The devices that keep something else than what is true."""
        truths = {scope: (await self.truth(scope))[1] for scope in self.scopes}
        return [
            device.user
            for device in self.devices
            if device.kept != {scope: truths[scope] for scope in (f"scope {device.user.partition('-')[2]}",)}
        ]

    async def all_right(self) -> bool:
        """Return whether each device keeps what is true, and nothing else."""
        return not await self.wrong()

    async def woken_for(self, scope_number: int, epoch: str) -> list[int]:
        """The sequences of an epoch that the offline phone of a scope was woken for."""
        told = await self.stage.fake_fcm.deliveries(f"token-of-offline-{scope_number}")
        messages = [one["message"].get("data", {}) for one in told]
        return [int(message["sequence"]) for message in messages if message.get("epoch") == epoch]
