"""The command `demo`: plays the story, or serves until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

from syncbeat_devtools.demo.instructions import Served, instructions
from syncbeat_devtools.demo.processes import Identity, start_process
from syncbeat_devtools.demo.readers_settings import ReadersSettings
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


def serve(readers: ReadersSettings) -> int:
    """Serve on embedded stores and a fake FCM until Ctrl-C, with what the reader has set; print commands to try."""
    with running_stores() as stores:
        return asyncio.run(stores.supervise(_serve(stores, stores.folder, readers)))


async def _serve(stores: EmbeddedStores, folder: Path, readers: ReadersSettings) -> int:
    await migrate(stores.owner_url, app_login="syncbeat_app")
    identity = Identity.new()
    credentials = folder / "service-account.json"
    fake = await start_process(["fake-fcm", "--credentials", str(credentials)], {}, folder / "fake-fcm.log")
    own = identity.settings()
    settings = {
        **readers.variables,
        **own,
        "SYNCBEAT_SERVICE_TOKENS": ",".join(filter(None, (own["SYNCBEAT_SERVICE_TOKENS"], readers.service_tokens))),
        "SYNCBEAT_LISTEN": readers.listen or _ADDRESS,
        "SYNCBEAT_DATABASE_URL": stores.app_url,
        "SYNCBEAT_REDIS_URL": stores.redis_url,
        "SYNCBEAT_FCM_CREDENTIALS": str(credentials),
        "SYNCBEAT_FCM_BASE_URL": fake.address,
        "SYNCBEAT_REFLECTION": "true",
        **readers.write_apps_file(folder),
    }
    try:
        # In the reader's folder, from which files that settings name are found.
        server = await start_process(["serve"], settings, folder / "server.log", folder=Path.cwd())
        try:
            user = mint(identity.key, "alice", datetime.now(UTC), timedelta(hours=12))
            served = Served(
                address=server.address,
                fake_fcm=fake.address,
                folder=folder,
                user_token=user,
                service_token=identity.service_token,
                database_url=stores.app_url,
                redis_url=stores.redis_url,
                readers=readers,
            )
            print(instructions(served), flush=True)
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stop.set)
            await stop.wait()
        finally:
            status = await server.stop()
    finally:
        await fake.stop()
    return status
