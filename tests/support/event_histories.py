"""A stateful history of events: shuffled, repeated, failing, retried; and what the same events come to in their order.

Each event states the whole of its subject: the user's account, its membership, its tier and the value of its feed. So
the state of a subject is what the latest of its events says whose effects could be carried out, whatever came when.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import asyncpg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from syncbeat.v1 import event_service_pb2 as pb
from syncbeat.v1 import sync_service_pb2
from syncbeat_server.events.retry_worker import RetryWorkerRule
from tests.support.databases import DatabaseUrls
from tests.support.event_requests import TIERS, change, named, told
from tests.support.event_statements import NOTHING, SOURCES, STATEMENTS, SUBJECTS, Statement, Told, World, state_said
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import Server, running_server

Answer = TypeVar("Answer")

# What the worker retries is due by the machine's clock: a history of more than a second would go either way.
_NO_RETRIES = replace(PATIENT, event_retries=RetryWorkerRule(poll_s=3_600.0))

FIGURES: Counter[str] = Counter()
"""The sums over all histories of this run."""

_HISTORIES = itertools.count()


class EventHistories(RuleBasedStateMachine):
    """Each rule is something that a source or an operator does; `play_event_histories` sets what it runs on."""

    server: ClassVar[Server]
    other: ClassVar[Server]
    """Another server of the same deployment."""
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Told] = []

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        FIGURES["steps"] += 1
        return self.runner.run(work)

    @initialize()
    def begin(self) -> None:
        FIGURES["histories"] += 1
        self.shuffled = World(f"h{next(_HISTORIES)}")

    def _new(self, says: Statement) -> Told:
        one = Told(len(self.events), says)
        self.events.append(one)
        FIGURES["events"] += 1
        return one

    @rule(says=STATEMENTS)
    def arrive(self, says: Statement) -> None:
        one = self._new(says)
        expected = self._expected(self.shuffled, one)
        one.first_answer = self.run(self._deliver(one))
        self._seen(self.shuffled, one, expected)
        assert told(one.first_answer) == (expected, expected), says

    @precondition(lambda self: self.events)
    @rule(which=st.integers(0, 1_000))
    def come_again(self, which: int) -> None:
        """A FAILED event is tried again; every other is a duplicate, answered with what was first."""
        one = self.events[which % len(self.events)]
        answer = self.run(self._deliver(one, again=True))
        FIGURES["redeliveries"] += 1
        if one.state == "FAILED":
            expected = self._expected(self.shuffled, one)
            assert told(answer) == (expected, expected), f"{one}: {answer}"
            self._seen(self.shuffled, one, expected)
            one.first_answer = answer
        else:
            assert told(answer) == ("DUPLICATE", one.state)
            self._check_same_result(one, answer)

    def _check_same_result(self, one: Told, answer: Any) -> None:
        if one.first_answer is None:
            one.first_answer = answer
        else:
            assert answer.receipt.first_seen_time == one.first_answer.receipt.first_seen_time
            assert list(answer.heads) == list(one.first_answer.heads)
            assert answer.trigger_notification_id == one.first_answer.trigger_notification_id

    @precondition(lambda self: self.events)
    @rule(which=st.integers(0, 1_000))
    def retry(self, which: int) -> None:
        one = self.events[which % len(self.events)]
        expected = self._expected(self.shuffled, one) if one.state == "FAILED" else one.state
        request = pb.RetryEventRequest(source=self.shuffled.source(one.says), event_id=one.event_id)
        answer = self.run(self.server.backend(request))
        FIGURES["retries"] += 1
        assert told(answer) == (expected, expected), f"{one}: {answer}"
        if one.state == "FAILED" and expected != "FAILED":
            one.first_answer = None  # only a redelivery tells the heads
        self._seen(self.shuffled, one, expected)

    @precondition(lambda self: any(one.fails and one.says.fails == "gate" for one in self.events))
    @rule(which=st.integers(0, 1_000))
    def open_gate(self, which: int) -> None:
        shut = [one for one in self.events if one.fails and one.says.fails == "gate"]
        one = shut[which % len(shut)]
        self.run(self._open(self.shuffled, one))
        one.open = True

    @precondition(lambda self: self.events)
    @rule(which=st.integers(0, 1_000))
    def come_with_other_content(self, which: int) -> None:
        one = self.events[which % len(self.events)]
        refusal = self.run(self.server.backend.refusal(self.shuffled.request(one, payload='{"other": 1}')))
        assert refusal.told == ("INVALID_ARGUMENT", "EVENT_ID_REUSED")

    @rule(says=st.lists(STATEMENTS, min_size=1, max_size=5), old=st.lists(st.integers(0, 1_000), max_size=3))
    def come_together(self, says: list[Statement], old: list[int]) -> None:
        """New ones, each twice, and some that came before, all at once at two servers: in any order."""
        again = [self.events[which % len(self.events)] for which in old] if self.events else []
        new = [self._new(one) for one in says]
        wanted = [*new, *again, *new]
        answers = self.run(self._deliver_together(wanted))
        FIGURES["deliveries_at_once"] += len(wanted)
        for one in new:
            states = Counter(told(a)[0] for other, a in zip(wanted, answers, strict=True) if other is one)
            # Twins wait for each other: one is the first. A second try of a FAILED one may find the gate as it was.
            assert states["DUPLICATE"] == 1 or one.fails, states
        self.run(self._look_again())

    async def _deliver_together(self, wanted: list[Told]) -> list[Any]:
        for one in wanted:
            one.comings += 1
        servers = itertools.cycle([self.server, self.other])
        calls = [server.backend(self.shuffled.request(one)) for server, one in zip(servers, wanted, strict=False)]
        return await asyncio.gather(*calls)

    async def _look_again(self) -> None:
        """Take the states from the service; the greatest that was accepted is the head of its subject."""
        for one in self.events:
            found = (await self._get(self.shuffled, one)).state
            before, one.state = one.state, named(found)
            assert before in ("", "FAILED", one.state), "what came to its end stays"
            assert one.state != "ACCEPTED" or not one.fails
            if before in ("", "FAILED") and one.state != before:
                one.first_answer = None
            if one.state == "ACCEPTED":
                self._moved(self.shuffled, one)
        for one in self.events:
            if one.state == "STALE":
                assert one.moment < self.shuffled.heads[self._order(one)], "nothing that was later"

    async def _get(self, world: World, one: Told) -> pb.Event:
        answer: pb.GetEventResponse = await self.server.backend(
            pb.GetEventRequest(source=world.source(one.says), event_id=one.event_id)
        )
        return answer.event

    async def _deliver(self, one: Told, *, again: bool = False) -> Any:
        one.comings += 1
        server = self.other if again and one.comings % 2 else self.server
        return await server.backend(self.shuffled.request(one))

    async def _open(self, world: World, one: Told) -> None:
        opened = sync_service_pb2.PublishChangesRequest(changes=[change(world.gate(one), 1)])
        await self.server.backend(opened)

    def _order(self, one: Told) -> tuple[str, str]:
        return one.says.source, one.says.subject

    def _expected(self, world: World, one: Told) -> str:
        """Return what becomes of it now by the contract."""
        if one.moment < world.heads.get(self._order(one), (-1, b"")):
            return "STALE"
        return "FAILED" if one.fails else "ACCEPTED"

    def _moved(self, world: World, one: Told) -> None:
        world.heads[self._order(one)] = max(one.moment, world.heads.get(self._order(one), (-1, b"")))

    def _seen(self, world: World, one: Told, state: str) -> None:
        one.state = state
        if state == "ACCEPTED":
            self._moved(world, one)
        FIGURES[state.lower()] += 1

    def teardown(self) -> None:
        if self.events:
            self.run(self._finish())

    async def _finish(self) -> None:
        """Open every gate, bring what failed once more, play all in order in another world, and compare the two."""
        for one in self.events:
            if one.says.fails == "gate" and not one.open:
                await self._open(self.shuffled, one)
                one.open = True
        for one in self.events:
            if one.state == "FAILED":
                answer = await self._deliver(one, again=True)
                expected = self._expected(self.shuffled, one)
                assert told(answer) == (expected, expected), f"{one}: {answer}"
                self._seen(self.shuffled, one, expected)
        ordered = World(f"{self.shuffled.name}o")
        for one in sorted(self.events, key=lambda one: one.moment):
            if one.says.fails == "gate":
                await self._open(ordered, one)
            answer = await self.server.backend(ordered.request(one))
            assert told(answer)[0] == ("FAILED" if one.says.fails == "tier" else "ACCEPTED")
        conn = await asyncpg.connect(self.server.urls.admin_url)
        try:
            for source, subject in itertools.product(SOURCES, SUBJECTS):
                await self._compare(conn, ordered, source, subject)
            await self._check_effects_came_once(conn)
        finally:
            await conn.close()
        for one in self.events:
            found = await self._get(self.shuffled, one)
            assert named(found.state) == one.state
            assert found.duplicate_count == one.comings - 1

    async def _compare(self, conn: asyncpg.Connection, ordered: World, source: str, subject: str) -> None:
        of_it = [one for one in self.events if self._order(one) == (source, subject)]
        if not of_it:
            return
        names = [world.subject(of_it[0].says) for world in (self.shuffled, ordered)]
        states = [await self._state(conn, name) for name in names]
        assert states[0] == states[1], f"{subject} of {source}: shuffled, and in order"
        carried_out = [one for one in of_it if one.says.fails != "tier"]
        if not carried_out:
            assert states[0] == NOTHING
            return
        says = max(carried_out, key=lambda one: one.moment)
        assert states[0] == state_said(says), f"{subject} of {source}: as the latest says"

    async def _state(self, conn: asyncpg.Connection, name: str) -> dict[str, Any]:
        row = await conn.fetchrow(
            """SELECT (SELECT CASE WHEN deleted_at IS NOT NULL THEN 'DELETE' WHEN disabled_at IS NOT NULL THEN 'DISABLE'
                              ELSE 'ENABLE' END FROM users WHERE user_id = $1) AS account,
                      (SELECT role FROM scope_members WHERE (scope, user_id) = ($1, $1)) AS role,
                      (SELECT tier FROM user_tiers WHERE user_id = $1) AS tier,
                      (SELECT value ->> 'by' FROM changes WHERE (scope, key) = ($1, 'state')) AS by""",
            name,
        )
        assert row is not None
        return dict(row)

    async def _check_effects_came_once(self, conn: asyncpg.Connection) -> None:
        """Each ACCEPTED event moved the head of its room by one, and that of its gate; no other did."""
        accepted = Counter(self.shuffled.subject(one.says) for one in self.events if one.state == "ACCEPTED")
        heads: dict[str, int] = defaultdict(int)
        for row in await conn.fetch("SELECT scope, head FROM scopes WHERE scope LIKE $1 || '-%'", self.shuffled.name):
            heads[row["scope"]] = row["head"]
        for name in {self.shuffled.subject(one.says) for one in self.events}:
            assert heads[name] == accepted[name], f"changes of {name}"
        for one in self.events:
            if one.says.fails == "gate":
                assert heads[self.shuffled.gate(one)] == 1 + (one.state == "ACCEPTED")


def play_event_histories(urls: DatabaseUrls, redis_url: str, folder: Path, *, histories: int, steps: int) -> None:
    """Play so many histories of so many steps on two servers of this database.

    Raises:
        AssertionError: one of them went against the contract; Hypothesis tells which.
    """
    apps = folder / "apps.toml"
    apps.write_text(TIERS)
    FIGURES.clear()
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start() -> Server:
            server = running_server(urls, redis_url, rules=_NO_RETRIES, APPS_FILE=str(apps))
            return await stack.enter_async_context(server)

        try:
            EventHistories.runner = runner
            EventHistories.server, EventHistories.other = runner.run(start()), runner.run(start())
            run_state_machine_as_test(
                EventHistories,
                settings=settings(
                    max_examples=histories,
                    stateful_step_count=steps,
                    deadline=None,
                    # A history that fails is told as it was drawn: to shorten one takes longer than a test may.
                    phases=(Phase.generate,),
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
