"""Wires the sync feature of a process that serves RPCs: hints, streams, publishes, and their background tasks."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from syncbeat_server.app.change_notifier import ClusterNotifier, RpcCaches
from syncbeat_server.app.process import Process
from syncbeat_server.app.tuning import hint_tuner
from syncbeat_server.directory.devices.presence import PresenceKeeper
from syncbeat_server.events.publish import Publisher
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.hints.builder import HintBuilder
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.hints.load_pacer import LoadPacer
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.view_reader import ViewReader
from syncbeat_server.sync.hints.view_sweep import ViewSweep
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.head_sweep import HeadSweep
from syncbeat_server.sync.streams.read_ahead import PageReadAhead
from syncbeat_server.sync.streams.restore_sweep import RestoreSweep
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.streams.watch_firehose import Firehose
from syncbeat_server.sync.streams.watch_hints import HintStreams
from syncbeat_server.sync.tuning.price_updates import HintTuner


@dataclass(frozen=True)
class SyncFeature:
    """Sync feature of one process. `tasks` run as long as it serves; `cursors` must be flushed afterwards."""

    service: SyncService
    streams: HintStreams
    firehose: Firehose
    publisher: Publisher
    cursors: CursorRecorder
    tuner: HintTuner
    tasks: Sequence[Coroutine[Any, Any, None]]


def wire_sync(process: Process, caches: RpcCaches, notifier: ClusterNotifier, pacer: LoadPacer) -> SyncFeature:
    """Create the sync feature of a process that serves RPCs."""
    clock, database, hub, rules = process.clock, process.database, process.hub, process.rules.sync
    reader = FeedReader(database, rules.reads)
    cursors = CursorRecorder(database, clock, rules.max_pending_cursors)
    writers = WriterPresence(database, clock, notifier.scope_changed)
    keeper = PresenceKeeper(process.presence, hub.live_devices, hub.is_live, clock)
    tuner = hint_tuner(process)
    recorders = Recorders(cursors, tuner.recorder)

    def listening() -> bool:
        return process.bus.listening

    def on_restore() -> None:
        caches.invalidate_all()
        cursors.clear()
        hub.invalidate_all(restored=True)

    hub.read_ahead = PageReadAhead(reader, rules.streams.page_size).read
    context = StreamContext(hub, reader, clock, tuner.tuning, pacer.reconnect_delay_s, rules.streams)
    views = ViewReader(database, caches.views, rules.views)
    hints = HintBuilder(views, recorders, pacer, tuner.tuning, hub.is_live, clock)
    sweep = HeadSweep(database, hub, clock, listening, rules.sweeps)
    view_sweep = ViewSweep(database, caches.views, clock, lambda: list(process.apps.current), rules.sweeps)
    restore_sweep = RestoreSweep(database, clock, on_restore, rules.sweeps)
    return SyncFeature(
        service=SyncService(database, reader, hints, writers, notifier),
        streams=HintStreams(context, recorders, writers, keeper.streams_changed),
        firehose=Firehose(context, database, listening),
        publisher=Publisher(database, clock, tuner.tuning, notifier, tuner.recorder, process.worker_processes.run),
        cursors=cursors,
        tuner=tuner,
        tasks=[
            *(cursors.run(), writers.run(), keeper.run(), keeper.run_refresh()),
            *(tuner.run(), pacer.run(), sweep.run(), view_sweep.run(), restore_sweep.run()),
        ],
    )
