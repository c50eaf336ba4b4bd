"""Effects of an event, by RPC: of every kind in one transaction, all or none, and once however often it comes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from syncbeat.v1 import core_pb2, directory_service_pb2, push_service_pb2
from syncbeat.v1 import event_service_pb2 as pb
from tests.support.databases import DatabaseUrls
from tests.support.event_requests import (
    NOT_DONE,
    SOURCE,
    TIERS,
    change,
    done_once,
    effects_of,
    event,
    everything,
    member,
    named,
    told,
    user,
)
from tests.support.rpc_server import BACKEND, Server, entry, running_server

pytestmark = pytest.mark.rpc

ACCEPTED, FAILED = ("ACCEPTED", "ACCEPTED"), ("FAILED", "FAILED")
RECORD_TABLES = ("event", "inbound")
"""Beginnings of the names of tables that hold events, and nothing of their effects."""

# One that cannot be carried out, of each kind that can fail; each beside effects of every other kind that can.
FAILING: dict[str, dict[str, Any]] = {
    "an expected sequence": {
        "changes": [change("ann", {"by": "ann"}), change("ann", 1, key="other", expected_sequence=7)]
    },
    "a tier that the app lacks": {
        "tiers": [pb.TierEffect(user_id="ann", tier="pro"), pb.TierEffect(user_id="bob", tier="gold")]
    },
    "a notification to a scope that is not there": {"user_ids": None, "scope": "nowhere"},
}


@pytest.fixture
async def tiered(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server whose app has tiers, and ann's phone."""
    apps = tmp_path / "apps.toml"
    apps.write_text(TIERS)
    async with running_server(database_urls, redis_url, APPS_FILE=str(apps)) as running:
        await running.register("ann", "phone", "token-1")
        yield running


def effects_alone(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """All rows but those that record events."""
    return {table: lines for table, lines in rows.items() if not table.startswith(RECORD_TABLES)}


async def get(server: Server, event_id: str, source: str = SOURCE) -> pb.Event:
    answer: pb.GetEventResponse = await server.backend(pb.GetEventRequest(source=source, event_id=event_id))
    return answer.event


async def test_event_effects_of_every_kind_are_carried_out(tiered: Server) -> None:
    answer = await tiered.backend(event("e1", everything("ann")))
    assert told(answer) == ACCEPTED
    assert await effects_of(tiered.urls.admin_url, "ann") == done_once("ann")
    assert [(head.scope, head.sequence) for head in answer.heads] == [("ann", 1)]
    for notification_id in (answer.trigger_notification_id, answer.notification_id):
        found = await tiered.backend(push_service_pb2.GetNotificationRequest(notification_id=notification_id))
        assert found.notification_id == notification_id
    assert answer.trigger_notification_id != answer.notification_id
    tier = await tiered.backend(directory_service_pb2.GetUserTierRequest(user_id="ann"))
    assert tier.user_tier.granted_tier == "pro"
    scopes = await tiered.user("ann")(directory_service_pb2.ListScopesRequest())
    assert [one.scope for one in scopes.scopes] == ["ann"]


@pytest.mark.parametrize("failing", FAILING)
async def test_event_effects_are_all_rolled_back_when_one_fails(tiered: Server, failing: str) -> None:
    before = await tiered.rows()
    answer = await tiered.backend(event("e1", everything("ann", **FAILING[failing])))
    assert told(answer) == FAILED
    assert answer.receipt.failure
    assert (list(answer.heads), answer.trigger_notification_id, answer.notification_id) == ([], "", "")
    assert effects_alone(await tiered.rows()) == effects_alone(before)
    found = await get(tiered, "e1")
    assert (named(found.state), found.attempts, found.failure) == ("FAILED", 1, answer.receipt.failure)
    assert found.first_seen_time.seconds < found.deadline_time.seconds


async def test_event_that_fails_spares_those_it_came_with(tiered: Server) -> None:
    wrong = everything("ann", tiers=[pb.TierEffect(user_id="ann", tier="gold")])
    calls = [event(f"good-{n}", pb.EventEffects(changes=[change("room", n, key=f"k{n}")])) for n in range(40)]
    calls[20:20] = [event("bad", wrong)]
    answers = await asyncio.gather(*(tiered.backend(call) for call in calls))
    assert Counter(map(told, answers)) == {ACCEPTED: 40, FAILED: 1}
    assert told(answers[20]) == FAILED
    assert await effects_of(tiered.urls.admin_url, "ann") == NOT_DONE
    (line,) = (await tiered.rows())["scopes"]
    assert line.startswith("(default,room,")
    assert {head.sequence for answer in answers for head in answer.heads} == set(range(1, 41))


async def test_event_twins_have_one_effect(tiered: Server) -> None:
    answers = await asyncio.gather(*(tiered.backend(event("e1", everything("ann"))) for _ in range(50)))
    assert Counter(map(told, answers)) == {ACCEPTED: 1, ("DUPLICATE", "ACCEPTED"): 49}
    (first,) = [answer for answer in answers if told(answer) == ACCEPTED]
    for answer in answers:
        assert answer.receipt.first_seen_time == first.receipt.first_seen_time
        assert list(answer.heads) == list(first.heads)
        assert answer.notification_id == first.notification_id != ""
        assert answer.trigger_notification_id == first.trigger_notification_id != ""
    assert await effects_of(tiered.urls.admin_url, "ann") == done_once("ann")
    assert (await get(tiered, "e1")).duplicate_count == 49


async def test_user_that_two_sources_create_at_once_has_one_row(
    tiered: Server, database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    async with running_server(database_urls, redis_url, APPS_FILE=str(tmp_path / "apps.toml")) as other:
        for number in range(25):
            name = f"user-{number}"
            made = pb.EventEffects(users=[user(name)], members=[member("all", name), member(name, name)])
            payment = pb.EventEffects(users=[user(name)], tiers=[pb.TierEffect(user_id=name, tier="pro")])
            answers = await asyncio.gather(
                tiered.backend(event(name, made, source="identity", type="user.created", subject=name)),
                other.backend(event(name, payment, source="billing", type="paid", subject=name)),
                other.backend(event(f"{name}-again", made, source="identity-2", subject=name)),
            )
            assert [told(answer) for answer in answers] == [ACCEPTED] * 3
    conn_rows = await tiered.rows()
    assert len(conn_rows["user_tiers"]) == 25
    assert len(conn_rows["scope_members"]) == 50
    found = [await effects_of(tiered.urls.admin_url, f"user-{number}") for number in range(25)]
    assert {one["users"] for one in found} == {1}


async def test_user_effects_in_opposite_orders_do_not_deadlock(tiered: Server) -> None:
    names = [f"user-{number}" for number in range(8)]
    rooms = [f"room-{number}" for number in range(8)]

    def mixed(number: int) -> pb.IngestEventRequest:
        turned = slice(None, None, 1 if number % 2 else -1)
        effects = pb.EventEffects(
            users=[user(name) for name in names[turned]],
            members=[member(room, *names[turned]) for room in rooms[turned]],
            tiers=[pb.TierEffect(user_id=name, tier="pro") for name in names[turned]],
            changes=[change(room, number, key=f"k{number}") for room in rooms[turned]],
        )
        return event(f"mixed-{number}", effects, subject=f"subject-{number}")

    answers = await asyncio.gather(*(tiered.backend(mixed(number)) for number in range(40)))
    assert {told(answer) for answer in answers} == {ACCEPTED}
    assert len((await tiered.rows())["changes"]) == 8 * 40


async def test_event_effect_wants_its_method_allowed(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    apps = tmp_path / "apps.toml"
    apps.write_text(TIERS)
    effects = {
        "EnableUser": pb.EventEffects(users=[user("ann")]),
        "DisableUser": pb.EventEffects(users=[user("ann", "DISABLE")]),
        "DeleteUser": pb.EventEffects(users=[user("ann", "DELETE")]),
        "AddScopeMembers": pb.EventEffects(members=[member("room", "ann")]),
        "RemoveScopeMembers": pb.EventEffects(members=[member("room", remove=("ann",))]),
        "SetUserTier": pb.EventEffects(tiers=[pb.TierEffect(user_id="ann", tier="pro")]),
        "PublishChanges": pb.EventEffects(changes=[change("room", 1)]),
        "SendNotification": pb.EventEffects(
            notification=core_pb2.Notification(title="t"), user_ids=core_pb2.UserIds(ids=["ann"])
        ),
    }
    tokens = [entry("backend", BACKEND)] + [
        entry(f"only-{method.lower()}", f"token-{method}", f"IngestEvent|GetEvent|{method}") for method in effects
    ]
    async with running_server(database_urls, redis_url, APPS_FILE=str(apps), SERVICE_TOKENS=",".join(tokens)) as server:
        for method in effects:
            caller = server.bearer(f"token-{method}")
            for effect, made in effects.items():
                request = event(f"{method}-{effect}", made)
                if method == effect or (method, effect) == ("AddScopeMembers", "AddScopeMembers"):
                    assert told(await caller(request)) == ACCEPTED, (method, effect)
                    continue
                before = await server.rows()
                refusal = await caller.refusal(request)
                assert refusal.told == ("PERMISSION_DENIED", "ACCESS_DENIED"), (method, effect)
                assert await server.rows() == before, "nothing is recorded"
