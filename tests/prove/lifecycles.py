"""A stateful history of pushes: what may come between acceptance and end, in any order, on a real database."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

import asyncpg
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from syncbeat_server.directory.model import Member, MemberRole, Platform, Preferences, QuietHours, Registration
from syncbeat_server.push import accept as push
from syncbeat_server.push.delivery.dependencies import DeliveryDependencies
from syncbeat_server.push.delivery.outcomes import OutcomeRecorder
from syncbeat_server.push.delivery.preflight import screen
from syncbeat_server.push.model import (
    ClaimedDelivery,
    Content,
    DeliveryState,
    DeliveryUpdate,
    Kind,
    NewNotification,
    Outcome,
    Reason,
    Target,
    Verdict,
)
from syncbeat_server.push.policy import retry
from syncbeat_server.push.policy.retry import RetryRule
from syncbeat_server.push.store import lifecycle, notifications, queue
from syncbeat_server.storage.postgres.database import Database
from syncbeat_server.storage.redis.token_bucket import TokenBucket
from tests.support.build import APP, make_channel, make_directory, make_user_lifecycle
from tests.support.databases import DatabaseUrls, open_database
from tests.support.doubles import ScriptedProvider, Streams, Unlimited
from tests.support.fake_clock import FakeClock

USERS = ("ann", "bob", "cat")
TOKENS = ("t1", "t2", "t3", "t4")
SCOPE = "room"
LEASE_S = 30.0
QUIET = QuietHours(12 * 60, 12 * 60 + 5, "")  # the five minutes after the clock's start
WAITING = (DeliveryState.PENDING, DeliveryState.HELD, DeliveryState.SCHEDULED, DeliveryState.IN_FLIGHT)
OUTCOMES: dict[str, Outcome] = {
    "sent": Outcome(Verdict.SENT, provider_message_id="m"),
    "unavailable": Outcome(Verdict.RETRY, Reason.UNAVAILABLE),
    "ambiguous": Outcome(Verdict.RETRY, Reason.AMBIGUOUS),
    "rejected": Outcome(Verdict.REJECTED, Reason.REJECTED),
    "unregistered": Outcome(Verdict.DEAD_TOKEN, Reason.UNREGISTERED),
}
Answer = TypeVar("Answer")


@dataclass
class Stand:
    """The state known without asking the service: holders of tokens, users' preferences, what was called back."""

    holders: dict[str, str] = field(default_factory=dict)  # of a token
    members: set[str] = field(default_factory=set)
    muted: set[str] = field(default_factory=set)
    quiet: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    promised: dict[str, int] = field(default_factory=dict)
    due: dict[str, datetime] = field(default_factory=dict)
    handed_over: dict[tuple[str, str], tuple[datetime, str]] = field(default_factory=dict)


FIGURES: Counter[str] = Counter()
"""The sums over all histories of this run."""


class Lifecycles(RuleBasedStateMachine):
    """Each rule is a step of a caller, a device or a worker; `urls` is set by the test that runs it."""

    urls: DatabaseUrls
    under_way = Bundle("under_way")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stand = Stand()
        self.sent: list[NewNotification] = []
        self.dice = random.Random(3)
        FIGURES["histories"] += 1

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        FIGURES["steps"] += 1
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        self.run(self._begin())

    async def _begin(self) -> None:
        self.admin = await asyncpg.connect(self.urls.admin_url)
        await self.admin.execute("TRUNCATE devices, notifications, users, scopes, preferences, token_moves CASCADE")
        self.owner = await asyncpg.connect(self.urls.owner_url)
        self.clock = FakeClock(on_move=self._move)
        await self._move(self.clock.now())
        self._opened = open_database(self.urls.app_url, size=3, name="history")
        self.database: Database = await self._opened.__aenter__()
        self.rule = RetryRule()
        channels = {APP: make_channel(ScriptedProvider(), self.clock)}
        allowance = cast(TokenBucket, Unlimited())
        self.deps = DeliveryDependencies(self.database, channels, Streams().live, allowance, self.clock)
        self.recorder = OutcomeRecorder(self.database, self.clock, self.rule.resend, self.deps.metrics, lambda: None)
        self.users = make_user_lifecycle(self.database)
        for user, token in zip(USERS, TOKENS, strict=False):
            await self._register(user, token)
            await self._join(user)

    async def _move(self, moment: datetime) -> None:
        await self.owner.execute("UPDATE test_clock SET at = $1", moment)

    async def _register(self, user: str, token: str) -> None:
        made = Registration(APP, user, "phone", Platform.ANDROID, token, "", "")
        await make_directory(self.database).register(made, "test", by_user=False)
        self.stand.holders = {t: u for t, u in self.stand.holders.items() if u != user and t != token}
        if token:
            self.stand.holders[token] = user

    async def _join(self, user: str) -> None:
        await make_directory(self.database).add_members(APP, SCOPE, [Member(SCOPE, user, MemberRole.WRITER)])
        self.stand.members.add(user)

    @rule(
        target=under_way,
        to=st.sampled_from([*USERS, SCOPE, SCOPE]),
        delay_s=st.sampled_from([0, 0, 40, 400]),
        key=st.sampled_from(["", "", "k"]),
        kind=st.sampled_from(["", "ads"]),
        critical=st.booleans(),
        ttl_s=st.sampled_from([0.0, 120.0, 3600.0, 3600.0]),
    )
    def send_and_claim(self, to: str, delay_s: int, key: str, kind: str, critical: bool, ttl_s: float) -> Any:
        self.send(to, delay_s, key, kind, critical=critical, ttl_s=ttl_s)
        return self.claim()

    def send(self, to: str, delay_s: int, key: str, kind: str, *, critical: bool, ttl_s: float) -> None:
        now = self.clock.now()
        sent = NewNotification(
            app_id=APP,
            notification_id=push.new_notification_id(now),
            kind=Kind.MESSAGE,
            caller="service:test",
            content=Content(title="t"),
            targets=(Target(scope=SCOPE) if to == SCOPE else Target(user_id=to),),
            type=kind,
            collapse_key=key,
            critical=critical,
            due_at=now + timedelta(seconds=delay_s) if delay_s else None,
            ttl_s=ttl_s,
            patient=ttl_s == 3600.0,
        )
        self.sent.append(sent)
        self.stand.due[sent.notification_id] = now + timedelta(seconds=delay_s)
        (answer,) = self.run(self._accept(sent))
        self.stand.promised[sent.notification_id] = answer.delivery_count
        self.run(self.clock.advance(0.001))  # so that no two are due at one moment
        FIGURES["notifications"] += 1

    async def _accept(self, sent: NewNotification) -> Any:
        async with self.database.transaction() as conn:
            return await push.accept(conn, [sent])

    @rule(target=under_way, seconds=st.sampled_from([1.0, 5.0, 15.0, 45.0, 300.0]))
    def wait_and_claim(self, seconds: float) -> Any:
        self.run(self.clock.advance(seconds))
        self.run(self._resolve())
        return self.claim()

    @rule(user=st.sampled_from(USERS), token=st.sampled_from(["", *TOKENS]))
    def register(self, user: str, token: str) -> None:
        self.run(self._register(user, token))

    @rule(user=st.sampled_from(USERS))
    def sign_out_and_in(self, user: str) -> None:
        token = next((t for t, holder in self.stand.holders.items() if holder == user), "")
        self.run(self._sign_out_and_in(user, token))

    async def _sign_out_and_in(self, user: str, token: str) -> None:
        await make_directory(self.database).unregister(APP, user, "phone", by_user=False)
        await self._register(user, token)

    @rule(user=st.sampled_from(USERS), muted=st.booleans(), quiet=st.booleans())
    def prefer(self, user: str, muted: bool, quiet: bool) -> None:
        wanted = Preferences(muted_types=("ads",) if muted else (), quiet_hours=QUIET if quiet else None)
        self.run(make_directory(self.database).set_preferences(APP, user, wanted, by_user=False))
        for flagged, users in ((muted, self.stand.muted), (quiet, self.stand.quiet)):
            (users.add if flagged else users.discard)(user)

    @rule(user=st.sampled_from(USERS), member=st.booleans())
    def move_member(self, user: str, member: bool) -> None:
        if member:
            self.run(self._join(user))
        elif user in self.stand.members:
            self.run(make_directory(self.database).remove_members(APP, SCOPE, [user]))
            self.stand.members.discard(user)

    @rule(user=st.sampled_from(USERS), disabled=st.booleans())
    def shut_out(self, user: str, disabled: bool) -> None:
        self.run(self.users.disable(APP, user) if disabled else self.users.enable(APP, user))
        (self.stand.disabled.add if disabled else self.stand.disabled.discard)(user)

    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        if self.sent:
            self._call_back(self.sent[-1 - which % len(self.sent)].notification_id)

    def _call_back(self, notification_id: str) -> None:
        self.run(self._cancel(notification_id))
        self.stand.cancelled.add(notification_id)
        FIGURES["cancels"] += 1

    async def _cancel(self, notification_id: str) -> None:
        before = await self._waiting(notification_id)
        async with self.database.transaction() as conn:
            count = await lifecycle.cancel(conn, APP, notification_id)
        if before is not None:
            assert count == before, "what waited is what was cancelled"

    async def _waiting(self, notification_id: str) -> int | None:
        rows = await self.admin.fetch(
            """SELECT state, called_back IS NULL AS free FROM deliveries WHERE notification_id = $1""", notification_id
        )
        resolved = await self.admin.fetchval(
            "SELECT accepted IS NOT NULL FROM notifications WHERE notification_id = $1", notification_id
        )
        return sum(row["state"] in WAITING and row["free"] for row in rows) if resolved else None

    async def _resolve(self) -> None:
        async with self.database.transaction() as conn:
            written = await push.expand(conn, [APP])
        if written:
            FIGURES["resolved_when_due"] += 1

    def claim(self) -> Any:
        begun = self.run(self._claim())
        for delivery in begun:
            self._check_begun(delivery)
        return multiple(*begun)

    async def _claim(self) -> list[ClaimedDelivery]:
        lease = str(uuid.uuid4())
        async with self.database.transaction() as conn:
            keys = (await queue.claim(conn, lease, LEASE_S, {APP: 200})).keys
            claimed = await queue.read_claimed(conn, lease, keys) if keys else []
        judged = await screen(self.deps, self.rule, claimed)
        await self._record(*(one for one in judged if one is not None))
        begun = [delivery for delivery, one in zip(claimed, judged, strict=True) if one is None]
        # Ids are drawn anew each time, and a history must come out the same when it is played again.
        return sorted(begun, key=lambda one: (self.stand.due[one.notification_id], one.user_id))

    async def _record(self, *ends: DeliveryUpdate) -> None:
        written: list[Awaitable[None]] = [self.recorder.record(end) for end in ends]
        await asyncio.gather(*written)

    def _check_begun(self, delivery: ClaimedDelivery) -> None:
        """No attempt begins that must not."""
        FIGURES["attempts"] += 1
        stand, told = self.stand, f"{delivery.user_id}: {delivery.notification_id}"
        assert delivery.notification_id not in stand.cancelled, f"begun after its cancel was answered: {told}"
        assert stand.holders.get(delivery.registration_token) == delivery.user_id, f"on a wrong device: {told}"
        assert delivery.user_id not in stand.disabled, f"to who is shut out: {told}"
        assert self.clock.now() >= stand.due[delivery.notification_id], f"before it was due: {told}"
        if not delivery.critical:
            assert not (delivery.type and delivery.user_id in stand.muted), f"muted: {told}"
            silence = self.clock.now() - datetime(2030, 1, 1, 12, tzinfo=self.clock.now().tzinfo)
            assert not (delivery.user_id in stand.quiet and silence < timedelta(minutes=5)), f"in quiet hours: {told}"
        if delivery.collapse_key:
            later = stand.handed_over.get((delivery.user_id, delivery.collapse_key))
            assert later is None or later <= self._order(delivery), f"a later one was handed over: {told}"

    def _order(self, delivery: ClaimedDelivery) -> tuple[datetime, str]:
        return (self.stand.due[delivery.notification_id], delivery.notification_id)

    @rule(delivery=consumes(under_way), outcome=st.sampled_from([*OUTCOMES, "sent", "sent"]))
    def end(self, delivery: ClaimedDelivery, outcome: str) -> None:
        ended = retry.conclude(delivery, OUTCOMES[outcome], self.rule, self.dice)
        self.run(self._record(ended))
        FIGURES[f"ended {outcome}"] += 1
        if outcome == "sent" and delivery.collapse_key and self.run(self._is_sent(delivery)):
            key = (delivery.user_id, delivery.collapse_key)
            self.stand.handed_over[key] = max(
                self._order(delivery), self.stand.handed_over.get(key, (self._order(delivery)))
            )
        if outcome == "unregistered" and self.stand.holders.get(delivery.registration_token) == delivery.user_id:
            self.run(self._forget_dead(delivery.user_id))

    @rule(
        target=under_way,
        delivery=consumes(under_way),
        by=st.sampled_from(["cancel", "sign out", "move", "mute", "later"]),
        outcome=st.sampled_from(["unavailable", "ambiguous", "rejected"]),
    )
    def interrupt(self, delivery: ClaimedDelivery, by: str, outcome: str) -> Any:
        """An attempt fails after something happened to its delivery; and it would be due again."""
        match by:
            case "cancel":
                self._call_back(delivery.notification_id)
            case "sign out":
                self.sign_out_and_in(delivery.user_id)
                self.run(self._check_not_tried_again(delivery, outcome))
                return multiple()
            case "move":
                self.register(USERS[USERS.index(delivery.user_id) - 1], delivery.registration_token)
            case "mute":
                self.prefer(delivery.user_id, muted=True, quiet=False)
            case _:
                self.send(delivery.user_id, 0, delivery.collapse_key, "", critical=True, ttl_s=3600.0)
                for later in self.run(self._claim()):
                    self._check_begun(later)
                    self.end(later, "sent")
        self.end(delivery, outcome)
        self.run(self.clock.advance(25.0))
        return self.claim()

    async def _check_not_tried_again(self, delivery: ClaimedDelivery, outcome: str) -> None:
        await self._record(retry.conclude(delivery, OUTCOMES[outcome], self.rule, self.dice))
        state = await self.admin.fetchval("SELECT state FROM deliveries WHERE delivery_id = $1", delivery.delivery_id)
        assert state in ("CANCELLED", "SENT", "EXPIRED", "DEAD", "SUPPRESSED"), "it waits for who signed in again"

    async def _is_sent(self, delivery: ClaimedDelivery) -> bool:
        return bool(
            await self.admin.fetchval(
                "SELECT state = 'SENT' FROM deliveries WHERE delivery_id = $1", delivery.delivery_id
            )
        )

    async def _forget_dead(self, user: str) -> None:
        dead = await self.admin.fetchval("SELECT token_state = 'DEAD' FROM devices WHERE user_id = $1", user)
        if dead:
            self.stand.holders = {t: holder for t, holder in self.stand.holders.items() if holder != user}

    @rule()
    def rescue(self) -> None:
        self.run(self._rescue())

    async def _rescue(self) -> None:
        async with self.database.connection() as conn:
            FIGURES["rescued"] += (await queue.rescue(conn, 100)).rescued

    @invariant()
    def adds_up(self) -> None:
        if self.sent:
            self.run(self._check_sums())

    async def _check_sums(self) -> None:
        rows = await self.admin.fetch(
            """SELECT n.notification_id::text AS notification_id, n.accepted,
                      (SELECT count(*) FROM deliveries d WHERE d.notification_id = n.notification_id) AS written
               FROM notifications n"""
        )
        assert len(rows) == len(self.sent)
        for row in rows:
            if row["accepted"] is None:
                assert row["written"] == 0, "resolved in part"
            else:
                assert row["accepted"] == row["written"]

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self.run(self._finish())
        self.runner.close()

    async def _finish(self) -> None:
        """Let everything come to its end, and add up once more."""
        try:
            for _ in range(3):
                await self.clock.advance(8 * 86_400.0)
                await self._resolve()
                await self._rescue()
                while await self._claim():
                    pass
            for sent in self.sent:
                async with self.database.connection() as conn:
                    found = await notifications.find_notification(conn, APP, sent.notification_id)
                assert found is not None
                assert found.resolved
                assert not found.counts.keys() & {*WAITING}, found.counts
                if sent.due_at is None:
                    assert sum(found.counts.values()) == self.stand.promised[sent.notification_id]
        finally:
            await self._opened.__aexit__(None, None, None)
            await self.admin.close()
            await self.owner.close()
