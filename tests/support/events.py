"""Builds the ingest of events, and events to ingest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.events.effects import EffectRules
from syncbeat_server.events.ingest import EventIngest
from syncbeat_server.events.model import Effects, EventKey, EventRule, EventState, IncomingEvent, StoredEvent
from syncbeat_server.events.store import event_rows
from syncbeat_server.ratelimit.model import UNLIMITED, Tier, TierPolicy
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.sync.model import NewChange
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder
from tests.support.build import APP, Notifier, default_tuning

SOURCE = "billing"
TIERS = TierPolicy({"pro": Tier("pro", ())}, None, None)


@dataclass
class Counts:
    """Keeps what was counted: (source, state) of what came, and (state, given up) of retries."""

    came: list[tuple[str, EventState]] = field(default_factory=list)
    again: list[tuple[EventState, bool]] = field(default_factory=list)

    def ingested(self, app_id: str, source: str, state: EventState) -> None:
        self.came.append((source, state))

    def retried(self, app_id: str, source: str, state: EventState, *, given_up: bool) -> None:
        self.again.append((state, given_up))


def make_ingest(
    database: Database,
    clock: Clock,
    *,
    notifier: ChangeNotifier | None = None,
    policy: TierPolicy = UNLIMITED,
    counts: Counts | None = None,
    **rule: float,
) -> EventIngest:
    """Build what ingests events; `rule` are fields of the rule of retries."""
    rules = EffectRules(lambda app_id: default_tuning(app_id).prior, lambda app_id: policy, clock)
    recorder = HintRecorder(default_tuning)
    return EventIngest(database, rules, EventRule(**rule), notifier or Notifier(), recorder, counts or Counts())


def change(value: object, key: str = "plan", scope: str = "team", **fields: Any) -> NewChange:
    """A change that sets a key to an object with this value."""
    return NewChange(scope, key, f'{{"v": {value}}}', **fields)


def event(event_id: str, *changes: NewChange, at: datetime | None = None, **fields: Any) -> IncomingEvent:
    """An event with these changes; `effects` and other fields may be given."""
    effects = fields.pop("effects", Effects(changes=changes))
    made = {"subject": "alice", "source": SOURCE, "payload_json": "{}", **fields}
    return IncomingEvent(
        app_id=APP,
        caller="service:test",
        source=made["source"],
        event_id=event_id,
        type=made.get("type", "changed"),
        subject=made["subject"],
        ordering_key=made.get("ordering_key", made["subject"]),
        occurred_at=at,
        payload_json=made["payload_json"],
        effects=effects,
        content_hash=hashlib.sha256(repr((effects, at, sorted(made.items()))).encode()).digest(),
        methods=made.get("methods"),
    )


def key_of(event_id: str, source: str = SOURCE) -> EventKey:
    """Return the key of an event of the tests' source."""
    return EventKey(APP, source, event_id)


async def stored(database: Database, event_id: str) -> StoredEvent:
    """Return an event as it is recorded."""
    async with database.connection() as conn:
        found = await event_rows.find_event(conn, key_of(event_id))
    assert found is not None
    return found


async def feed_value(database: Database, key: str = "plan", scope: str = "team") -> Any:
    """Return the value of a key in the feed of a scope; None if there is none."""
    async with database.connection() as conn:
        text = await conn.fetchval("SELECT value FROM changes WHERE scope = $1 AND key = $2", scope, key)
    return None if text is None else json.loads(text)
