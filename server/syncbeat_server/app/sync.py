"""Wires the sync feature of a process that serves RPCs: hints, streams, publishes, and what runs beside them."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.change_notifier import Front, Tellers
from syncbeat_server.app.process import Process
from syncbeat_server.app.tuning import learning_of, sampling
from syncbeat_server.directory.presence import PresenceKeeper
from syncbeat_server.events.publish import Publisher
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import Hints
from syncbeat_server.sync.hints.cursor_recorder import SeenRecorder
from syncbeat_server.sync.hints.load_pacer import Pacer
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import Activity, DeviceKey
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.firehose import Firehose
from syncbeat_server.sync.streams.head_sweep import HeadSweep, LineageSweep, ViewSweep
from syncbeat_server.sync.streams.watch import HintStreams


@dataclass(frozen=True)
class Syncing:
    """The sync feature of one process. `tasks` are to run as long as it serves; `seen` is to be flushed after."""

    service: SyncService
    streams: HintStreams
    firehose: Firehose
    publisher: Publisher
    seen: SeenRecorder
    tasks: Sequence[Coroutine[Any, Any, None]]


def syncing(process: Process, front: Front, tell: Tellers, pacer: Pacer) -> Syncing:
    """Wire it."""
    clock, database, hub = process.clock, process.database, process.hub
    reader, seen = FeedReader(database), SeenRecorder(database, clock)
    writers = WriterPresence(database, clock, tell.scope_changed)
    keeper = PresenceKeeper(process.presence, lambda: [_device(key) for key in hub.live_devices()], clock)
    learning = learning_of(process)
    tuning, recorder = learning.tuning, learning.recorder

    def reported(device: DeviceKey, activity: Activity) -> None:
        tell.devices_changed(device.app_id, [device.user_id])
        writers.note(device, activity)

    def moved(device: DeviceKey) -> None:
        keeper.moved(_device(device))

    def restored() -> None:
        front.callers.invalidate_app()
        front.views.forget_all()
        seen.forget()
        hub.look_everywhere(restored=True)

    streams = HintStreams(hub, reader, seen, clock, moved, tuning, writers.note, pacer.turn, recorder)
    hints = Hints(front.views, seen, recorder, pacer, tuning, hub.is_live, clock)
    published = sampling(process, recorder, tell.scope_changed)
    sweep = HeadSweep(database, hub, clock, lambda: process.bus.listening)
    firehose = Firehose(hub, database, reader, clock, tuning, lambda: process.bus.listening, pacer.turn)
    view_sweep = ViewSweep(database, front.views, clock, list(process.settings.all_apps()))
    lineage_sweep = LineageSweep(database, clock, restored)
    return Syncing(
        service=SyncService(database, reader, hints, tell.scope_changed, reported),
        streams=streams,
        firehose=firehose,
        publisher=Publisher(database, clock, tuning, published, tell.deliveries_accepted, process.worker_processes.run),
        seen=seen,
        tasks=[
            *(seen.run(), writers.run(), keeper.run(), keeper.run_refresh()),
            *(learning.run(), pacer.run(), sweep.run(), view_sweep.run(), lineage_sweep.run()),
        ],
    )


def _device(key: DeviceKey) -> tuple[str, str, str]:
    return (key.app_id, key.user_id, key.device_id)
