"""Builds the features of one process on a database, as `syncbeat_server.app` wires them for the service.

Tests build here and nowhere else, so that a constructor that changes is changed in `app/` and in this module. Nobody is
told of anything unless a test asks to hear of it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

from syncbeat_server.app.process_rules import DEFAULT_RULES, SyncRules
from syncbeat_server.audit.record import record_grant
from syncbeat_server.auth.accounts.account_status_cache import AccountStatusCache
from syncbeat_server.auth.accounts.caller_caches import CallerCaches
from syncbeat_server.auth.accounts.token_cache import TokenCache
from syncbeat_server.auth.model import AccountKey, Issuer, KeyRow, SessionTokens, VerifiedToken
from syncbeat_server.auth.service import Authenticator, Credentials
from syncbeat_server.auth.sessions.refresh_rate_limit import RefreshRateLimit
from syncbeat_server.auth.sessions.refresh_token_codec import RefreshKeys
from syncbeat_server.auth.sessions.rotation_and_reuse import SessionRule
from syncbeat_server.auth.sessions.service import SessionRequest, SessionService
from syncbeat_server.auth.sessions.signing import SigningKeys
from syncbeat_server.auth.store import sessions as session_store
from syncbeat_server.auth.store import users
from syncbeat_server.auth.tokens.keys import key_table, new_signing_key, parse_signing_keys
from syncbeat_server.auth.tokens.revocation import is_revoked
from syncbeat_server.auth.tokens.verify import parse_token, verify_token
from syncbeat_server.clock import Clock
from syncbeat_server.directory.model import ChangeNotifier
from syncbeat_server.directory.service import CancelWaiting, DirectoryService
from syncbeat_server.errors import SyncbeatError
from syncbeat_server.events.publish import Publish, Publisher
from syncbeat_server.events.user_lifecycle import UserLifecycle
from syncbeat_server.push.accept import cancel_waiting
from syncbeat_server.push.delivery.channel import Channel
from syncbeat_server.push.delivery.dependencies import DeliveryDependencies
from syncbeat_server.push.delivery.flow_control import Gate
from syncbeat_server.push.delivery.worker import DeliveryWorker, WorkerRule
from syncbeat_server.push.delivery.worker_metrics import NoMetrics, WorkerMetrics
from syncbeat_server.push.providers import Provider
from syncbeat_server.ratelimit.model import UNLIMITED, TierPolicy
from syncbeat_server.ratelimit.quotas import MAX_COUNTS, QuotaCounters
from syncbeat_server.ratelimit.user_tiers import UserTiers
from syncbeat_server.resilience.breaker import BreakerRule
from syncbeat_server.resilience.fleet_breaker import FleetBreaker
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.token_bucket import TokenBucket
from syncbeat_server.sync.feed.reader import FeedReader
from syncbeat_server.sync.feed.writer import lock_scope
from syncbeat_server.sync.hints.builder import HintBuilder
from syncbeat_server.sync.hints.cursor_recorder import CursorRecorder
from syncbeat_server.sync.hints.reconnect_spacing import ReconnectSpacer
from syncbeat_server.sync.hints.recorders import Recorders
from syncbeat_server.sync.hints.view_cache import ViewCache
from syncbeat_server.sync.hints.view_reader import ViewReader
from syncbeat_server.sync.hints.view_sweep import ViewSweep
from syncbeat_server.sync.hints.writer_presence import WriterPresence
from syncbeat_server.sync.model import Cursor, DeviceKey, FeedPage, Hint, NewChange, Poll
from syncbeat_server.sync.policy import DEFAULT_TUNING, Tuning
from syncbeat_server.sync.policy.arrival_book import ArrivalBook
from syncbeat_server.sync.policy.load_leveling import LoadLeveler
from syncbeat_server.sync.service import SyncService
from syncbeat_server.sync.streams.head_sweep import HeadSweep
from syncbeat_server.sync.streams.hub import Hub
from syncbeat_server.sync.streams.open_stream_limits import OpenStreamLimits
from syncbeat_server.sync.streams.read_ahead import PageReadAhead
from syncbeat_server.sync.streams.stream_context import StreamContext
from syncbeat_server.sync.streams.watch_firehose import Firehose
from syncbeat_server.sync.streams.watch_hints import HintStreams
from syncbeat_server.sync.tuning.hint_recorder import HintRecorder
from syncbeat_server.sync.tuning.price_updates import HintTuner
from tests.support.doubles import FailingDatabase, HeldDatabase, Streams, Unlimited
from tests.support.fake_clock import FakeClock

APP = "default"
MANY_STREAMS = OpenStreamLimits(per_user=100, per_device=100)
PHONE = DeviceKey(APP, "ann", "phone")
COME_BACK_PER_S = 2.0

ISSUER = Issuer("default", "syncbeat:default", own_sessions=True, uuid_subjects=False)
(SIGNER,) = parse_signing_keys(new_signing_key("s1").decode(), ISSUER)
TABLE = key_table([KeyRow(ISSUER, SIGNER.kid, SIGNER.algorithm, SIGNER.key.public_key())])
SIGNING = SigningKeys({"default": SIGNER}, RefreshKeys({"k1": b"s" * 32}))
SESSION_RULE = SessionRule(access_s=600, idle_s=3_600, max_s=86_400, grace_s=30, per_user=5)
REFRESHES_PER_MINUTE = 60


def ignore(*_: object) -> None:
    """Do nothing with what is told."""


def default_tuning(app_id: str) -> Tuning:
    """Return the tuning that an app has before anything is learned."""
    return DEFAULT_TUNING


@dataclass(frozen=True)
class Notifier:
    """Passes on changes of scopes and accepted deliveries, and ignores the other notifications."""

    on_scope: Callable[[str, str], None] = ignore
    on_deliveries: Callable[[], None] = ignore

    def scope_changed(self, app_id: str, scope: str) -> None:
        """Pass it on."""
        self.on_scope(app_id, scope)

    def members_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Ignore it."""

    def devices_changed(self, app_id: str, user_ids: Sequence[str]) -> None:
        """Ignore it."""

    def caller_changed(self, app_id: str, user_id: str) -> None:
        """Ignore it."""

    def deliveries_accepted(self) -> None:
        """Pass it on."""
        self.on_deliveries()


def make_directory(database: Database, cancel: CancelWaiting = cancel_waiting) -> DirectoryService:
    """Build the directory; `cancel` cancels what waits to be pushed to a device."""
    return DirectoryService(database, cancel, lock_scope, Notifier())


def make_user_lifecycle(database: Database, user_changed: Callable[[str, str], None] = ignore) -> UserLifecycle:
    """Build what disables and erases users."""
    return UserLifecycle(database, user_changed)


def make_publisher(
    database: Database,
    clock: Clock,
    *,
    tuning: Callable[[str], Tuning] = default_tuning,
    notifier: ChangeNotifier | None = None,
    recorder: HintRecorder | None = None,
) -> Publisher:
    """Build what publishes changes; it notifies nobody unless a notifier is given."""
    return Publisher(database, clock, tuning, notifier or Notifier(), recorder or HintRecorder(tuning))


def make_account_statuses(database: Database, clock: Clock, size: int = 100) -> AccountStatusCache:
    """Build the cache of account statuses; it keeps `size` of them."""
    return AccountStatusCache(database, clock, size)


def make_caller_caches(database: Database, clock: Clock, tokens: int = 100, accounts: int = 100) -> CallerCaches:
    """Build the caches of so many verified tokens and account statuses."""
    return CallerCaches(make_account_statuses(database, clock, accounts), TokenCache(clock, tokens))


def make_user_tiers(
    database: Database, policy: TierPolicy = UNLIMITED, user_changed: Callable[[str, str], None] = ignore
) -> UserTiers:
    """Build what grants tiers, of the same policy for every app."""
    return UserTiers(database, lambda app_id: policy, user_changed, record_grant)


def make_quotas(database: Database, clock: Clock, size: int = MAX_COUNTS) -> QuotaCounters:
    """Build the quota counts of one process."""
    return QuotaCounters(database, clock, size)


def make_authenticator(credentials: Credentials, caches: CallerCaches, clock: Clock) -> Authenticator:
    """Build what lets callers in."""
    return Authenticator(credentials, caches, clock)


def make_sessions(
    database: Database,
    clock: Clock,
    signing: SigningKeys | None = SIGNING,
    rule: SessionRule = SESSION_RULE,
    *,
    forged_per_minute: int = REFRESHES_PER_MINUTE,
    revoked: Callable[[str, str], None] = ignore,
) -> SessionService:
    """Build the sessions of one process."""
    limits = RefreshRateLimit(clock, REFRESHES_PER_MINUTE, forged_per_minute)
    return SessionService(database, signing, rule, clock, revoked, limits)


class AttemptMetrics(NoMetrics):
    """Passes on the outcome of each attempt."""

    def __init__(self, on_attempt: Callable[[str], None]) -> None:
        self._on_attempt = on_attempt

    def attempt_ended(self, outcome: str) -> None:
        self._on_attempt(outcome)


def make_breaker(clock: Clock, name: str = "push:default") -> FleetBreaker:
    """Build a breaker of this process alone."""
    return FleetBreaker(name, BreakerRule(), clock)


def make_channel(
    provider: Provider, clock: Clock, in_flight: int = 200, breaker: FleetBreaker | None = None, **fields: Any
) -> Channel:
    """Build an app's channel through a provider."""
    gate = Gate(in_flight, 10_000.0, breaker or make_breaker(clock), clock)
    return Channel(provider, gate, "app:default", b"secret", **fields)


def make_worker(
    database: Database,
    clock: Clock,
    providers: Provider | Mapping[str, Provider] = MappingProxyType({}),
    *,
    channels: Mapping[str, Channel] | None = None,
    streams: Streams | None = None,
    allowance: TokenBucket | None = None,
    attempt_ended: Callable[[str], None] = ignore,
    metrics: WorkerMetrics | None = None,
    in_flight: int = 200,
    app: dict[str, Any] | None = None,
    **rule: Any,
) -> DeliveryWorker:
    """Build a worker of the default app, or of several by their providers or their channels.

    `app` are fields of the channels, `rule` those of the worker's rule.
    """
    of_apps = providers if isinstance(providers, Mapping) else {APP: providers}
    made = {app_id: make_channel(one, clock, in_flight, **(app or {})) for app_id, one in of_apps.items()}
    deps = DeliveryDependencies(
        database,
        made if channels is None else channels,
        (streams or Streams()).live,
        allowance or cast(TokenBucket, Unlimited()),
        clock,
        metrics or AttemptMetrics(attempt_ended),
    )
    return DeliveryWorker(deps, WorkerRule(**rule))


@dataclass
class SyncFeature:
    """Holds the sync feature of one process: hints, feeds, streams and publishing.

    Its database can be made to fail (`failing`), and what views are read from also to hold its answers back (`held`).
    With `cached_views` so many of them are kept, as long as the process is `listening`. `draw` draws the moments of
    its streams' checkpoints.
    """

    database: Database
    clock: FakeClock
    hub: Hub = field(default_factory=lambda: Hub(limits=MANY_STREAMS))
    tuner: HintTuner | None = None
    cached_views: int = 0
    rules: SyncRules = DEFAULT_RULES.sync
    draw: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        self.failing = FailingDatabase(self.database)
        self.held = HeldDatabase(self.failing.as_database)
        self.listening = self.cached_views > 0
        self.turns = ReconnectSpacer()
        self.tuning = default_tuning if self.tuner is None else self.tuner.tuning
        self.recorder = HintRecorder(self.tuning) if self.tuner is None else self.tuner.recorder
        self.pacing = LoadLeveler(ArrivalBook(self.clock.now().timestamp()), lambda: 0.5)
        self._wire_reads()
        self._wire_streams()

    def _wire_reads(self) -> None:
        reachable, clock, hub = self.failing.as_database, self.clock, self.hub
        self.reader = FeedReader(reachable, self.rules.reads)
        self.cursors = CursorRecorder(reachable, clock, self.rules.max_pending_cursors)
        self.recorders = Recorders(self.cursors, self.recorder)
        self.writers = WriterPresence(reachable, clock, hub.scope_changed)
        self.views = ViewCache(clock, lambda: self.listening, self.cached_views or 100, self.rules.view_max_staleness_s)
        self.view_reader = ViewReader(self.held.as_database, self.views, self.rules.views)
        self.view_sweep = ViewSweep(reachable, self.views, clock, lambda: [APP], self.rules.sweeps)
        hints = HintBuilder(self.view_reader, self.recorders, self.pacing, self.tuning, hub.is_live, clock)
        self.notifier = Notifier(hub.scope_changed)
        self.service = SyncService(reachable, self.reader, hints, self.writers, self.notifier)
        self.publisher = make_publisher(self.database, clock, tuning=self.tuning, notifier=self.notifier)

    def _wire_streams(self) -> None:
        reachable, clock, hub = self.failing.as_database, self.clock, self.hub
        self.head_sweep = HeadSweep(reachable, hub, clock, lambda: True, self.rules.sweeps)
        hub.read_ahead = PageReadAhead(self.reader, self.rules.streams.page_size).read
        context = StreamContext(
            hub, self.reader, clock, self.tuning, self._reconnect_delay_s, replace(self.rules.streams, draw=self._draw)
        )
        self.streams = HintStreams(context, self.recorders, self.writers, ignore)
        self.firehose = Firehose(context, reachable, lambda: True)

    def _draw(self, low: float, high: float) -> float:
        return self.draw(low, high)

    def _reconnect_delay_s(self) -> float:
        return self.turns.next_delay_s(self.clock.monotonic(), COME_BACK_PER_S)

    def under(self, **rules: Any) -> SyncFeature:
        """Return the feature of another process on the same database, which goes by other rules."""
        return replace(self, hub=Hub(limits=MANY_STREAMS), rules=replace(self.rules, **rules))

    def publish_quietly(self) -> None:
        """Tell the hub of no publish from here on: as if other processes made them, and no wake-up arrived."""
        self.publisher = make_publisher(self.database, self.clock, tuning=self.tuning)

    async def publish(self, *keys: str, scope: str = "couple", deleted: bool = False) -> Cursor:
        """Publish a change of each key as the backend; the scope's head after it."""
        changes = tuple(NewChange(scope, key, "" if deleted else "{}", deleted) for key in keys)
        digest = hashlib.sha256(repr(changes).encode()).digest()
        published = await self.publisher.publish(Publish(APP, "service:test", changes, None, None, "", digest))
        return published.heads[0]

    async def page(self, cursor: Cursor, limit: int = 10, user_id: str | None = None) -> FeedPage:
        """Read a page of a feed."""
        (found,) = await self.reader.pages(APP, user_id, [cursor], limit)
        assert found is not None
        return found

    async def hint(self, *cursors: Cursor, **fields: Any) -> Hint:
        """Poll as ann's phone."""
        poll = Poll(PHONE, cursors, **fields)
        return self.service.try_hint(poll) or await self.service.hint(poll, is_user=True)


class SessionFeature:
    """Holds the sessions of one process, and what it told others."""

    def __init__(self, database: Database, clock: FakeClock, signing: SigningKeys | None = SIGNING) -> None:
        self.told: list[tuple[str, str]] = []
        self.database = database
        self.clock = clock
        self.service = make_sessions(database, clock, signing, revoked=lambda *who: self.told.append(who))

    async def create(self, user_id: str = "ann", **fields: Any) -> SessionTokens:
        """Create a session as the backend."""
        made = SessionRequest("default", user_id, "", {}, "service:backend", "", b"")
        return await self.service.create(replace(made, **fields))

    async def refresh(self, token: str) -> SessionTokens:
        """Refresh as a device."""
        return await self.service.refresh(token, "192.0.2.1")

    def verified(self, tokens: SessionTokens) -> VerifiedToken:
        """Check the access token's signature and claims."""
        unverified = parse_token(tokens.access_token)
        return verify_token(unverified, TABLE[unverified.issuer, SIGNER.kid, SIGNER.algorithm], self.clock.now())

    async def use(self, tokens: SessionTokens) -> bool:
        """Call with the access token: whether it is let in. It shows that the tokens have arrived."""
        token = self.verified(tokens)
        async with self.database.connection() as conn:
            key = AccountKey("default", token.subject, token.session_id)
            (standing,) = await users.read_statuses(conn, [key])
            await session_store.confirm_counters(conn, [("default", token.session_id, token.counter)])
        return not is_revoked(token, standing)

    async def outcome(self, tokens: SessionTokens) -> SessionTokens | SyncbeatError:
        """Refresh, and return what it comes to."""
        try:
            return await self.refresh(tokens.refresh_token)
        except SyncbeatError as error:
            return error
