"""EventService over a real channel: what is ingested, read, listed and retried, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from syncbeat.v1 import core_pb2, directory_service_pb2, sync_service_pb2
from syncbeat.v1 import event_service_pb2 as pb
from syncbeat_server.events.retry_worker import RetryWorkerRule
from syncbeat_server.ops.settings.server import Role
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.file_damage import put
from tests.support.process_rules import PATIENT
from tests.support.rpc_server import METHODS, Server, entry, running_server

pytestmark = pytest.mark.rpc


def change(value: int, scope: str = "team", key: str = "plan") -> core_pb2.NewChange:
    return core_pb2.NewChange(scope=scope, key=key, merge_patch_json=f'{{"v":{value}}}')


def moment(second: int) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC))
    return made


def ingest(event_id: str, value: int | None = 1, second: int | None = None, **fields: Any) -> pb.IngestEventRequest:
    """A request with one change, unless `effects` are given."""
    effects = fields.pop("effects", {} if value is None else {"changes": [change(value)]})
    made = {"source": "billing", "type": "changed", "subject": "alice", **fields}
    return pb.IngestEventRequest(
        event_id=event_id,
        effects=pb.EventEffects(**effects),
        occurred_time=None if second is None else moment(second),
        **made,
    )


async def value_of(server: Server, scope: str = "team") -> dict[str, str]:
    page = await server.backend(sync_service_pb2.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope=scope)))
    return {one.key: one.value_json for one in page.changes}


async def test_event_effects_of_every_kind_are_one_transaction(server: Server) -> None:
    await server.register("alice", "phone", "token")
    members = [directory_service_pb2.ScopeMember(user_id="alice", role=directory_service_pb2.ROLE_WRITER)]
    effects = {
        "users": [pb.UserEffect(user_id="alice", action=pb.USER_ACTION_ENSURE)],
        "members": [pb.MemberEffect(scope="team", add=members, remove_user_ids=["bob"])],
        "tiers": [pb.TierEffect(user_id="alice", tier="")],
        "changes": [change(1)],
        "trigger": core_pb2.SyncTrigger(type="news"),
        "notification": core_pb2.Notification(title="Paid"),
        "scope": "team",
    }
    request = ingest("e1", effects=effects)

    answer = await server.backend(request)
    again = await server.backend(request)

    assert answer.receipt.state == pb.EVENT_STATE_ACCEPTED
    assert [(head.scope, head.sequence) for head in answer.heads] == [("team", 1)]
    assert answer.trigger_notification_id
    assert answer.notification_id
    assert again.receipt.state == pb.EVENT_STATE_DUPLICATE
    assert again.receipt.event_state == pb.EVENT_STATE_ACCEPTED
    assert (again.heads, again.notification_id) == (answer.heads, answer.notification_id)
    assert await value_of(server) == {"plan": '{"v": 1}'}
    listed = await server.backend(directory_service_pb2.ListScopeMembersRequest(scope="team"))
    assert [one.user_id for one in listed.members] == ["alice"]


async def test_user_effects_shut_users_out_and_in(server: Server) -> None:
    alice = server.user("alice")
    scopes = directory_service_pb2.ListScopesRequest()
    await alice(scopes)

    def acts(event_id: str, action: pb.UserAction.ValueType) -> pb.IngestEventRequest:
        return ingest(event_id, effects={"users": [pb.UserEffect(user_id="alice", action=action)]})

    await server.backend(acts("e1", pb.USER_ACTION_DISABLE))
    assert (await alice.refusal(scopes)).code.name == "UNAUTHENTICATED"
    await server.backend(acts("e2", pb.USER_ACTION_ENSURE))
    assert (await alice.refusal(scopes)).code.name == "UNAUTHENTICATED"
    await server.backend(acts("e3", pb.USER_ACTION_ENABLE))
    await alice(scopes)
    await server.backend(acts("e4", pb.USER_ACTION_DELETE))
    assert (await alice.refusal(scopes)).code.name == "UNAUTHENTICATED"


async def test_events_are_read_and_listed_newest_first(server: Server) -> None:
    for number in range(5):
        await server.backend(ingest(f"e{number}", number, number, payload_json='{"n": 1}'))
    await server.backend(ingest("late", 9, 1))
    await server.backend(ingest("other", None, source="identity"))
    await server.backend(ingest("bad", effects={"tiers": [pb.TierEffect(user_id="x", tier="unknown")]}))

    found = (await server.backend(pb.GetEventRequest(source="billing", event_id="e1"))).event
    assert (found.state, found.attempts, found.payload_json) == (pb.EVENT_STATE_ACCEPTED, 1, '{"n": 1}')
    assert (found.ordering_key, found.occurred_time) == ("alice", moment(1))
    assert found.deadline_time.seconds - found.first_seen_time.seconds == 86_400
    assert not found.HasField("next_attempt_time")

    async def pages(**wanted: Any) -> list[str]:
        names: list[str] = []
        token = ""
        while True:
            page = await server.backend(pb.ListEventsRequest(page_size=2, page_token=token, **wanted))
            names += [one.event_id for one in page.events]
            token = page.next_page_token
            if not token:
                return names

    assert await pages() == ["bad", "other", "late", "e4", "e3", "e2", "e1", "e0"]
    assert await pages(source="billing") == ["bad", "late", "e4", "e3", "e2", "e1", "e0"]
    assert await pages(state=pb.EVENT_STATE_STALE) == ["late"]
    assert await pages(state=pb.EVENT_STATE_FAILED, source="billing") == ["bad"]
    assert await pages(state=pb.EVENT_STATE_ACCEPTED, source="identity") == ["other"]
    assert await pages(state=pb.EVENT_STATE_DUPLICATE) == []


async def test_list_page_ends_at_a_mebibyte_of_payloads(server: Server) -> None:
    payload = '"' + "x" * 262_142 + '"'
    for number in range(6):
        await server.backend(ingest(f"e{number}", None, payload_json=payload))

    first = await server.backend(pb.ListEventsRequest())
    rest = await server.backend(pb.ListEventsRequest(page_token=first.next_page_token))

    assert [one.event_id for one in first.events] == ["e5", "e4", "e3", "e2"]
    assert [one.event_id for one in rest.events] == ["e1", "e0"]
    assert not rest.next_page_token


SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"trigger": core_pb2.SyncTrigger()}, "effects.trigger"),
    ({"notification": core_pb2.Notification(title="t")}, "effects.target"),
    ({"scope": "team"}, "effects.scope"),
    ({"notification": core_pb2.Notification(), "scope": "team"}, "effects.notification"),
    ({"notification": core_pb2.Notification(title="t"), "scope": ""}, "effects.scope"),
    ({"changes": [core_pb2.NewChange(scope="s", key="k")]}, "effects.changes[0].merge_patch_json"),
    (
        {"members": [pb.MemberEffect(scope=s, remove_user_ids=["x"] * 600) for s in "ab"]},
        "effects.members",
    ),
]


async def test_effects_that_make_no_sense_are_refused(server: Server) -> None:
    for effects, path in SENSELESS:
        refusal = await server.backend.refusal(ingest("refused", effects=effects))
        assert refusal.told == ("INVALID_ARGUMENT", "INVALID_FIELD"), path
        assert refusal.fields == (path,)
    assert (await server.rows())["events"] == []


async def test_event_id_reused_is_told(server: Server) -> None:
    await server.backend(ingest("e1", 1))
    same = ingest("e1", 1)
    same.app_id = "default"

    assert (await server.backend(same)).receipt.state == pb.EVENT_STATE_DUPLICATE
    refusal = await server.backend.refusal(ingest("e1", 2))
    assert refusal.told == ("INVALID_ARGUMENT", "EVENT_ID_REUSED")
    assert refusal.fields == ("event_id",)


async def test_unknown_event_is_not_found(server: Server) -> None:
    for request in (
        pb.GetEventRequest(source="s", event_id="e"),
        pb.RetryEventRequest(source="s", event_id="e"),
    ):
        assert (await server.backend.refusal(request)).told == ("NOT_FOUND", "NOT_FOUND")


async def test_effect_beyond_the_allow_list_is_denied_and_not_recorded(
    database_urls: DatabaseUrls, redis_url: str
) -> None:
    tokens = f"{entry('narrow', 'n' * 30, 'IngestEvent|PublishChanges')},{entry('backend', 'a-token-of-the-backend')}"
    async with running_server(database_urls, redis_url, SERVICE_TOKENS=tokens) as server:
        narrow = server.bearer("n" * 30)
        delete = pb.UserEffect(user_id="bob", action=pb.USER_ACTION_DELETE)
        refusal = await narrow.refusal(ingest("e1", effects={"changes": [change(1)], "users": [delete]}))

        assert refusal.told == ("PERMISSION_DENIED", "ACCESS_DENIED")
        assert "DeleteUser" in refusal.message
        assert (await server.rows())["events"] == []
        assert (await narrow(ingest("e1", 1))).receipt.state == pb.EVENT_STATE_ACCEPTED


async def test_failed_event_is_retried_by_the_service(database_urls: DatabaseUrls, redis_url: str) -> None:
    rules = replace(PATIENT, event_retries=RetryWorkerRule(poll_s=0.05))
    wanted = {"notification": core_pb2.Notification(title="t"), "scope": "later", "changes": [change(1)]}
    async with running_server(database_urls, redis_url, rules=rules) as server:
        failed = await server.backend(ingest("e1", effects=wanted))
        assert failed.receipt.state == pb.EVENT_STATE_FAILED
        assert "NOT_FOUND" in failed.receipt.failure
        retried = await server.backend(pb.RetryEventRequest(source="billing", event_id="e1"))
        assert retried.receipt.state == pb.EVENT_STATE_FAILED
        await server.add("later", "alice")

        async def accepted() -> bool:
            found = await server.backend(pb.GetEventRequest(source="billing", event_id="e1"))
            return bool(found.event.state == pb.EVENT_STATE_ACCEPTED)

        await wait_until(accepted)
        assert await value_of(server) == {"plan": '{"v": 1}'}


async def test_failed_event_is_retried_by_a_process_without_rpcs(database_urls: DatabaseUrls, redis_url: str) -> None:
    idle, often = (replace(PATIENT, event_retries=RetryWorkerRule(poll_s=poll_s)) for poll_s in (3_600.0, 0.05))
    wanted = {"notification": core_pb2.Notification(title="t"), "scope": "later", "changes": [change(1)]}
    async with (
        running_server(database_urls, redis_url, Role.RPC, idle) as server,
        running_server(database_urls, redis_url, Role.WORKER, often),
    ):
        failed = await server.backend(ingest("e1", effects=wanted))
        assert failed.receipt.state == pb.EVENT_STATE_FAILED
        await server.add("later", "alice")

        async def accepted() -> bool:
            found = await server.backend(pb.GetEventRequest(source="billing", event_id="e1"))
            return bool(found.event.state == pb.EVENT_STATE_ACCEPTED)

        await wait_until(accepted)
        assert await value_of(server) == {"plan": '{"v": 1}'}


async def test_two_sources_create_the_same_user_at_once(server: Server) -> None:
    effects = {"users": [pb.UserEffect(user_id="new", action=pb.USER_ACTION_ENSURE)]}
    requests = [ingest(f"e{number}", effects=effects, source=f"s{number % 2}", subject="") for number in range(10)]

    answers = await asyncio.gather(*(server.backend(request) for request in requests))

    assert {one.receipt.state for one in answers} == {pb.EVENT_STATE_ACCEPTED}


async def test_event_of_the_future_is_refused(server: Server) -> None:
    request = ingest("e1")
    request.occurred_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=330))
    refusal = await server.backend.refusal(request)
    assert (refusal.told, refusal.fields) == (("INVALID_ARGUMENT", "INVALID_FIELD"), ("occurred_time",))
    assert refusal.field_reasons == ("OUT_OF_RANGE",)
    request.occurred_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=270))
    await server.backend(request)


SIGNED = """
[apps.default.sources.stripe]
scheme = "stripe"
secrets = ["whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
effects."*" = "`{}`"
samples = ['{"id": "evt_1", "type": "paid"}']
"""


async def test_source_of_signed_webhooks_is_refused_to_callers(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "apps.toml"
    put(file, "[apps.default]\n")
    often = replace(PATIENT, files_every_s=0.05)
    async with running_server(database_urls, redis_url, Role.ALL, often, APPS_FILE=str(file)) as server:
        await server.backend(ingest("e0", source="stripe"))
        put(file, "[apps.default]\n" + SIGNED)

        async def refused() -> bool:
            request = ingest("e1", source="stripe").SerializeToString()
            outcome = await server.backend.outcome(METHODS["IngestEventRequest"], request)
            return outcome is not None and outcome.told == ("PERMISSION_DENIED", "ACCESS_DENIED")

        await wait_until(refused)
        await server.backend(ingest("e1", source="stripes"))
        found = (await server.backend(pb.GetEventRequest(source="stripe", event_id="e0"))).event
        assert found.event_id == "e0", "what is recorded can be read and retried"
