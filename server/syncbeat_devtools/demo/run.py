"""The command `demo`: plays the story, or serves until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from syncbeat_devtools.demo.processes import Identity, start_process
from syncbeat_devtools.demo.report import Report
from syncbeat_devtools.demo.resend_chapter import RESEND_AFTER_S
from syncbeat_devtools.demo.session_chapter import count_lines_with_secrets
from syncbeat_devtools.demo.stage import Stage, running_stage
from syncbeat_devtools.demo.story import play_story
from syncbeat_devtools.embedded import EmbeddedStores, running_stores
from syncbeat_server.auth.tokens.verify import mint
from syncbeat_server.storage.migrate import migrate

_ADDRESS = "127.0.0.1:50051"


def play(*, as_json: bool) -> int:
    """Play the story and check each claim. Returns the exit status, 0 if all claims held."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that all children end too
    report = Report(as_json=as_json)
    with running_stores() as stores:
        return asyncio.run(stores.supervise(_play(stores, stores.folder, report)))


async def _play(stores: EmbeddedStores, folder: Path, report: Report) -> int:
    report.chapter("Real stores, two servers, a worker, and a fake of FCM")
    await migrate(stores.owner_url, app_login="syncbeat_app")
    async with running_stage(stores, folder) as stage:
        stage.settings["SYNCBEAT_RESEND_S"] = f"{RESEND_AFTER_S},{RESEND_AFTER_S}"
        await stage.start_all()
        report.note(f"servers on {stage.servers[0].address} and {stage.servers[1].address}, a worker beside them")
        await play_story(stage, report)
        await _stop(stage, report)
    return report.finish()


async def _stop(stage: Stage, report: Report) -> None:
    report.chapter("Everything stops by SIGTERM")
    running = [stage.servers[-1], *([stage.worker] if stage.worker else [])]
    statuses = await asyncio.gather(*(process.stop() for process in running))
    report.claim("each process drained and ended by itself", statuses == [0] * len(running), statuses)
    found = count_lines_with_secrets(stage.folder)
    report.claim("no line of any log holds a token", found == 0, f"{found} lines")


def serve() -> int:
    """Serve on embedded stores and a fake FCM until Ctrl-C, at SYNCBEAT_LISTEN if set; print commands to try."""
    with running_stores() as stores:
        return asyncio.run(stores.supervise(_serve(stores, stores.folder)))


async def _serve(stores: EmbeddedStores, folder: Path) -> int:
    await migrate(stores.owner_url, app_login="syncbeat_app")
    identity = Identity.new()
    credentials = folder / "service-account.json"
    fake = await start_process(["fake-fcm", "--credentials", str(credentials)], {}, folder / "fake-fcm.log")
    settings = {
        **identity.settings(),
        "SYNCBEAT_LISTEN": os.environ.get("SYNCBEAT_LISTEN") or _ADDRESS,
        "SYNCBEAT_DATABASE_URL": stores.app_url,
        "SYNCBEAT_REDIS_URL": stores.redis_url,
        "SYNCBEAT_FCM_CREDENTIALS": str(credentials),
        "SYNCBEAT_FCM_BASE_URL": fake.address,
        "SYNCBEAT_REFLECTION": "true",
    }
    try:
        server = await start_process(["serve"], settings, folder / "server.log")
        try:
            print(_instructions(identity, server.address, fake.address, folder), flush=True)
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await stop.wait()
        finally:
            status = await server.stop()
    finally:
        await fake.stop()
    return status


def _instructions(identity: Identity, address: str, fake: str, folder: Path) -> str:
    user = mint(identity.key, "alice", datetime.now(UTC), timedelta(hours=12))
    call = ".venv/bin/buf curl --schema protos --protocol grpc --http2-prior-knowledge"
    service = f"http://{address}/syncbeat.v1"
    return f"""
Syncbeat serves on {address}; its fake FCM on {fake}, what came of pushes on {fake}/control/deliveries
Its log is {folder}/server.log. Ctrl-C ends everything.

export ADDRESS={address}
export USER_TOKEN={user}
export SERVICE_TOKEN={identity.service_token}

Put the three lines above into another shell, in this folder, and try these, or docs/quickstart.md:

{call} -H "authorization: Bearer $USER_TOKEN" -d '{{"device_id": "phone", "platform": "PLATFORM_ANDROID",
  "registration_token": "phone-of-alice"}}' {service}.DirectoryService/RegisterDevice
{call} -H "authorization: Bearer $USER_TOKEN" \\
  -d '{{"device_id": "phone", "explain": true}}' {service}.SyncService/GetHint
{call} -H "authorization: Bearer $SERVICE_TOKEN" -d '{{"user_ids": {{"ids": ["alice"]}},
  "notification": {{"title": "Hello"}}}}' {service}.PushService/SendNotification
{call} -H "authorization: Bearer $SERVICE_TOKEN" -d '{{"user_id": "alice"}}' {service}.AuthService/CreateSession

This one comes last: it takes back every token that alice had until then, USER_TOKEN too. The one above makes her a new
one, as accessToken.

{call} -H "authorization: Bearer $SERVICE_TOKEN" -d '{{"user_id": "alice"}}' {service}.AuthService/RevokeUser
"""
