"""One person under two issuers and a session: devices, pushes, hints, streams, dedupe and revocation are of all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import core_pb2, directory_service_pb2, event_service_pb2, push_service_pb2, sync_service_pb2
from syncbeat_devtools.fake_fcm import FakeFcm, running_fake_fcm
from syncbeat_server.auth.accounts.account_status_cache import CACHE_S
from syncbeat_server.auth.model import Identity, LinkedBy
from syncbeat_server.auth.store import identities
from syncbeat_server.ops.settings.server import Role
from syncbeat_server.storage.postgres.database import Database
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.identities import FIRST_ISSUER, anybody, apps_file, link_request, link_token, new_token
from tests.support.process_rules import PATIENT_WITH_OTHERS
from tests.support.rpc_server import METHODS, Caller, Server, refusal_of, running_server

pytestmark = pytest.mark.rpc

REVOKED = ("UNAUTHENTICATED", "TOKEN_REVOKED")
CONFLICT = ("FAILED_PRECONDITION", "IDENTITY_CONFLICT")
SOON_S = 20.0
RULES = replace(PATIENT_WITH_OTHERS, negative_cache_s=CACHE_S)
WHO_AM_I = directory_service_pb2.ListDevicesRequest()
LIST_DEVICES = METHODS["ListDevicesRequest"]


class Person:
    """Ann, by each of the tokens that she has, on each server."""

    def __init__(self, one: Server, two: Server, session: str) -> None:
        self.one, self.two = one, two
        self.tokens = {"old": None, "new": new_token("uuid-of-ann"), "session": session}

    def on(self, server: Server, name: str) -> Caller:
        """Return her as a caller by one of her tokens."""
        token = self.tokens[name]
        return server.user("ann") if token is None else server.bearer(token)

    def all(self) -> list[Caller]:
        """Return her on each server by each token."""
        return [self.on(server, name) for server in (self.one, self.two) for name in self.tokens]


@pytest.fixture
async def fake() -> AsyncIterator[FakeFcm]:
    async with running_fake_fcm() as running:
        yield running


@pytest.fixture
async def ann(database_urls: DatabaseUrls, redis_url: str, fake: FakeFcm, tmp_path: Path) -> AsyncIterator[Person]:
    account = tmp_path / "account.json"
    fake.write_service_account(account)
    settings: Any = {
        "FCM_CREDENTIALS": str(account),
        "FCM_BASE_URL": fake.base_url,
        "APPS_FILE": apps_file(tmp_path),
        "JWT_LEEWAY_S": "0",
    }
    async with (
        running_server(database_urls, redis_url, Role.ALL, RULES, **settings) as one,
        running_server(database_urls, redis_url, rules=RULES, **settings) as two,
    ):
        await one.user("ann")(WHO_AM_I)
        # Another server has seen the new subject before it was linked, and holds it for a user of its own.
        await two.bearer(new_token("uuid-of-ann"))(WHO_AM_I)
        await anybody(one)(link_request(new_token("uuid-of-ann"), await link_token(one, "ann")))
        await one.register("ann", "phone", "anns-token")
        session = await one.backend(pb.CreateSessionRequest(user_id="ann"))

        async def is_ann() -> bool:
            return bool((await two.bearer(new_token("uuid-of-ann"))(WHO_AM_I)).devices)

        await wait_until(is_ann, timeout_s=SOON_S)
        yield Person(one, two, session.access_token)


async def test_linked_identities_share_devices_scopes_hints_and_dedupe(ann: Person) -> None:
    await ann.on(ann.two, "new")(
        directory_service_pb2.RegisterDeviceRequest(
            device_id="tablet", platform=directory_service_pb2.PLATFORM_IOS, registration_token="another-token"
        )
    )
    await ann.one.add("s", "ann")
    await ann.one.publish("s")
    for caller in ann.all():
        assert [one.device_id for one in (await caller(WHO_AM_I)).devices] == ["phone", "tablet"]
        assert [one.scope for one in (await caller(directory_service_pb2.ListScopesRequest())).scopes] == ["s"]
    (change,) = (await ann.on(ann.one, "old")(at("s"))).changes
    cursor = (await ann.on(ann.one, "old")(at("s"))).next_cursor
    for caller in ann.all():
        seen = await caller(sync_service_pb2.GetHintRequest(device_id="phone", cursors=[cursor]))
        assert not seen.hint.changed
        assert (await caller(sync_service_pb2.GetHintRequest(device_id="phone"))).hint.poll_interval.seconds > 0
    assert change.key == "k"
    write = sync_service_pb2.PublishChangesRequest(
        request_id="r1", changes=[core_pb2.NewChange(scope="s", key="mine", merge_patch_json="1")]
    )
    answers = [await caller(write) for caller in ann.all()]
    assert [one.replayed for one in answers] == [False] + [True] * (len(answers) - 1)
    assert {one.heads[0].sequence for one in answers} == {2}


def at(scope: str) -> sync_service_pb2.ListChangesRequest:
    return sync_service_pb2.ListChangesRequest(cursor=core_pb2.ScopeCursor(scope=scope))


async def test_push_reaches_the_device_of_either_identity_once(ann: Person, fake: FakeFcm) -> None:
    await ann.on(ann.two, "new")(
        directory_service_pb2.RegisterDeviceRequest(
            device_id="phone", platform=directory_service_pb2.PLATFORM_ANDROID, registration_token="anns-token"
        )
    )
    sent = await ann.one.backend(
        push_service_pb2.SendNotificationRequest(
            user_ids=core_pb2.UserIds(ids=["ann"]), notification=core_pb2.Notification(title="t")
        )
    )
    chosen = push_service_pb2.DeliveryFilter(notification_id=sent.notification_id)
    listing = push_service_pb2.ListDeliveriesRequest(filter=chosen)

    async def is_sent() -> bool:
        (found,) = (await ann.one.backend(listing)).deliveries
        return bool(found.state == push_service_pb2.DELIVERY_STATE_SENT)

    await wait_until(is_sent, timeout_s=SOON_S)
    nobody = push_service_pb2.SendNotificationRequest(
        user_ids=core_pb2.UserIds(ids=["uuid-of-ann"]), notification=core_pb2.Notification(title="t")
    )
    other = await ann.one.backend(nobody)
    chosen.notification_id = other.notification_id
    assert not (await ann.one.backend(push_service_pb2.ListDeliveriesRequest(filter=chosen))).deliveries


async def test_streams_of_all_identities_hear_of_a_change(ann: Person) -> None:
    await ann.one.add("s", "ann")
    streams = [caller.watch() for caller in ann.all()]
    for stream in streams:
        await stream.opened()
    await ann.one.publish("s")
    for stream in streams:
        assert (await stream.next("change")).scope == "s"
        stream.call.cancel()


@pytest.mark.parametrize("way", ["RevokeUser", "DisableUser", "DeleteUser"])
async def test_shutting_a_user_out_ends_all_of_its_identities(ann: Person, way: str) -> None:
    streams = [caller.watch() for caller in ann.all()]
    for stream in streams:
        await stream.opened()
    old = {caller: await caller(WHO_AM_I) for caller in ann.all()}
    stranger = ann.two.bearer(new_token("somebody"))
    await stranger(WHO_AM_I)
    requests = {
        "RevokeUser": pb.RevokeUserRequest(user_id="ann"),
        "DisableUser": directory_service_pb2.DisableUserRequest(user_id="ann"),
        "DeleteUser": directory_service_pb2.DeleteUserRequest(user_id="ann"),
    }
    await ann.one.backend(requests[way])
    async with asyncio.timeout(SOON_S):
        for stream in streams:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.until(lambda *_: False)
            assert refusal_of(caught.value).told == REVOKED
    for caller in old:
        assert (await caller.refusal(WHO_AM_I)).told == REVOKED
    await stranger(WHO_AM_I)
    if way == "DeleteUser":  # nor does a token of the new issuer bring her back as somebody new
        assert (await ann.two.bearer(new_token("uuid-of-ann")).refusal(WHO_AM_I)).told == REVOKED


async def user_rows(database: Database) -> list[str]:
    """Return all that is kept of users and their identities."""
    async with database.connection() as conn:
        rows = await conn.fetch(
            """SELECT to_jsonb(u)::text AS row FROM users u
               UNION ALL SELECT to_jsonb(i)::text FROM user_identities i ORDER BY 1"""
        )
    return [row["row"] for row in rows]


@pytest.mark.parametrize(
    "request_",
    [
        pb.RevokeUserRequest(user_id="uuid-of-ann"),
        directory_service_pb2.DisableUserRequest(user_id="uuid-of-ann"),
        directory_service_pb2.EnableUserRequest(user_id="uuid-of-ann"),
        directory_service_pb2.DeleteUserRequest(user_id="uuid-of-ann"),
    ],
    ids=lambda request: type(request).__name__,
)
async def test_shutting_out_by_a_linked_subject_is_refused_and_names_the_user(
    ann: Person, database: Database, request_: Any
) -> None:
    before = await user_rows(database)
    refusal = await ann.one.backend.refusal(request_)
    assert refusal.told == CONFLICT
    assert "'ann'" in refusal.message
    assert await user_rows(database) == before
    for caller in ann.all():
        await caller(WHO_AM_I)


@pytest.mark.parametrize("action", ["DISABLE", "ENABLE", "DELETE"])
async def test_event_about_a_linked_subject_fails_and_names_the_user(
    ann: Person, database: Database, action: str
) -> None:
    before = await user_rows(database)
    effect = event_service_pb2.UserEffect(
        user_id="uuid-of-ann", action=event_service_pb2.UserAction.Value(f"USER_ACTION_{action}")
    )
    event = event_service_pb2.IngestEventRequest(
        source="supabase",
        event_id="e1",
        type="user.updated",
        effects=event_service_pb2.EventEffects(users=[effect]),
    )
    answer = await ann.one.backend(event)
    assert answer.receipt.event_state == event_service_pb2.EVENT_STATE_FAILED
    assert "IDENTITY_CONFLICT" in answer.receipt.failure
    assert "'ann'" in answer.receipt.failure
    assert await user_rows(database) == before


async def test_subject_with_an_identity_of_its_own_is_shut_out_by_it(ann: Person, database: Database) -> None:
    async with database.transaction() as conn:  # the same id is somebody else's at the first issuer
        namesake = Identity("default", FIRST_ISSUER, "uuid-of-ann")
        await identities.insert_identity(conn, namesake, "uuid-of-ann", LinkedBy.IMPORT)
    await ann.one.backend(directory_service_pb2.DisableUserRequest(user_id="uuid-of-ann"))
    assert (await ann.one.user("uuid-of-ann").refusal(WHO_AM_I)).told == REVOKED
    for caller in ann.all():
        await caller(WHO_AM_I)


async def test_disabled_user_is_let_in_again_under_all_identities(ann: Person) -> None:
    await ann.one.backend(directory_service_pb2.DisableUserRequest(user_id="ann"))
    for caller in ann.all():

        async def refused(caller: Caller = caller) -> bool:
            outcome = await caller.outcome(LIST_DEVICES, b"")
            return outcome is not None and outcome.told == REVOKED

        await wait_until(refused, timeout_s=SOON_S)
    await ann.one.backend(directory_service_pb2.EnableUserRequest(user_id="ann"))
    for caller in ann.all():

        async def let_in(caller: Caller = caller) -> bool:
            return await caller.outcome(LIST_DEVICES, b"") is None

        await wait_until(let_in, timeout_s=SOON_S)
