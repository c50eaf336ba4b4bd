"""The audit log over the wire: each audited RPC writes its entries, and ListAuditEntries lists them to operators."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from syncbeat.v1 import auth_service_pb2, directory_service_pb2, event_service_pb2, push_service_pb2
from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.audit.policy.coverage import AUDITED
from tests.support.databases import DatabaseUrls, run_sql
from tests.support.identities import NEW_ISSUER, apps_file, link_request, new_token, signed_grant
from tests.support.rpc_server import Caller, Server, entry, running_server

pytestmark = pytest.mark.rpc


@pytest.fixture
async def server(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A server whose app has further issuers, which users can be linked to."""
    async with running_server(database_urls, redis_url, APPS_FILE=apps_file(tmp_path)) as running:
        yield running


DENIED = ("PERMISSION_DENIED", "ACCESS_DENIED")
ALL = pb.ListAuditEntriesRequest(page_size=1_000)


def called_by(caller: Caller, request_id: str) -> Caller:
    return Caller(caller.channel, (*caller.metadata, ("x-request-id", request_id)))


async def listed(server: Server, **wanted: Any) -> list[Any]:
    return list((await server.operator(pb.ListAuditEntriesRequest(page_size=1_000, **wanted))).entries)


async def revoke_session(server: Server) -> None:
    made = await server.backend(auth_service_pb2.CreateSessionRequest(user_id="ann"))
    request = auth_service_pb2.RevokeSessionRequest(session_id=made.session_id)
    await called_by(server.bearer(made.access_token), "the call")(request)


async def reuse_refresh_token(server: Server) -> None:
    anybody = called_by(Caller(server.channel, ()), "the call")
    spent = (await server.backend(auth_service_pb2.CreateSessionRequest(user_id="ann"))).refresh_token
    token = spent
    for _ in range(2):
        token = (await anybody(auth_service_pb2.RefreshSessionRequest(refresh_token=token))).refresh_token
    await anybody.refusal(auth_service_pb2.RefreshSessionRequest(refresh_token=spent))


async def move_token(server: Server) -> None:
    await server.register("ann", "phone", "the-token")
    request = directory_service_pb2.RegisterDeviceRequest(
        device_id="tablet", platform=directory_service_pb2.PLATFORM_ANDROID, registration_token="the-token"
    )
    await called_by(server.user("bob"), "the call")(request)


async def link_identity(server: Server) -> None:
    await server.user("ann")(directory_service_pb2.ListDevicesRequest())
    await called_by(Caller(server.channel, ()), "the call")(link_request(new_token("uuid-1"), signed_grant()))


async def create_link_token(server: Server) -> None:
    await server.user("ann")(directory_service_pb2.ListDevicesRequest())
    await as_backend(server)(auth_service_pb2.CreateLinkTokenRequest(user_id="ann", issuer=NEW_ISSUER))


def effects(event_id: str = "e1", tier: str = "") -> event_service_pb2.IngestEventRequest:
    users = [
        event_service_pb2.UserEffect(user_id=user_id, action=action)
        for user_id, action in (
            ("ann", event_service_pb2.USER_ACTION_ENABLE),
            ("bob", event_service_pb2.USER_ACTION_DISABLE),
            ("carl", event_service_pb2.USER_ACTION_DELETE),
        )
    ]
    tiers = [event_service_pb2.TierEffect(user_id="ann", tier=tier)]
    made = event_service_pb2.EventEffects(users=users, tiers=tiers)
    return event_service_pb2.IngestEventRequest(source="crm", event_id=event_id, type="t", effects=made)


async def retry_event(server: Server) -> None:
    await server.backend(effects(tier="none such"))
    await as_backend(server)(event_service_pb2.RetryEventRequest(source="crm", event_id="e1"))


def as_backend(server: Server) -> Caller:
    return called_by(server.backend, "the call")


def of_backend(request: Any) -> Callable[[Server], Awaitable[Any]]:
    return lambda server: as_backend(server)(request)


directory = directory_service_pb2
DRIVERS: dict[str, tuple[Callable[[Server], Awaitable[Any]], str, str]] = {
    "RevokeSession": (revoke_session, "user:ann", "user:ann"),
    "RevokeUser": (
        of_backend(auth_service_pb2.RevokeUserRequest(user_id="ann", reason="stolen")),
        *("service:backend", "user:ann"),
    ),
    "RefreshSession": (reuse_refresh_token, "anonymous", "user:ann"),
    "CreateLinkToken": (create_link_token, "service:backend", "user:ann"),
    "LinkIdentity": (link_identity, "anonymous", "user:ann"),
    "RegisterDevice": (move_token, "user:bob", "user:ann"),
    "DisableUser": (of_backend(directory.DisableUserRequest(user_id="ann")), "service:backend", "user:ann"),
    "EnableUser": (of_backend(directory.EnableUserRequest(user_id="ann")), "service:backend", "user:ann"),
    "DeleteUser": (of_backend(directory.DeleteUserRequest(user_id="ann")), "service:backend", "user:ann"),
    "SetUserTier": (of_backend(directory.SetUserTierRequest(user_id="ann")), "service:backend", "user:ann"),
    "IngestEvent": (of_backend(effects()), "service:backend", "user:ann user:bob user:carl"),
    "RetryEvent": (retry_event, "service:backend", "event:crm/e1"),
    "RedriveDeliveries": (
        lambda server: called_by(server.operator, "the call")(
            push_service_pb2.RedriveDeliveriesRequest(
                request_id="r1", filter=push_service_pb2.DeliveryFilter(user_id="ann")
            )
        ),
        *("admin:operator", "user:ann"),
    ),
}


def test_audited_rpcs_all_have_a_driver() -> None:
    assert DRIVERS.keys() == AUDITED.keys()


@pytest.mark.parametrize("method", sorted(DRIVERS))
async def test_audited_rpc_writes_its_entries(server: Server, method: str) -> None:
    drive, actor, subjects = DRIVERS[method]
    await drive(server)
    found = [one for one in await listed(server) if not pb.AuditAction.Name(one.action).startswith("AUDIT_ACTION_APP")]
    assert {pb.AuditAction.Name(one.action).removeprefix("AUDIT_ACTION_") for one in found} == AUDITED[method]
    assert len(found) == max(len(AUDITED[method]), len(subjects.split()))
    assert {(one.actor, one.address, one.request_id) for one in found} == {(actor, "127.0.0.1", "the call")}
    assert {one.subject for one in found} == set(subjects.split())
    for one in found:
        assert "the-token" not in one.details_json
        assert json.loads(one.details_json).get("event_id", "e1") == "e1"


async def test_audit_of_moved_token_names_both_devices(server: Server) -> None:
    await move_token(server)
    (moved,) = await listed(server, action=pb.AUDIT_ACTION_TOKEN_MOVED)
    assert json.loads(moved.details_json) == {
        "from_device_id": "phone",
        "to_user_id": "bob",
        "to_device_id": "tablet",
        "refused": False,
    }


async def test_refused_call_of_an_audited_rpc_writes_no_entry(server: Server) -> None:
    before = await listed(server)
    await server.backend.refusal(auth_service_pb2.RevokeSessionRequest(user_id="ann", session_id="none"))
    await server.user("ann").refusal(directory_service_pb2.DisableUserRequest(user_id="bob"))
    await server.backend.refusal(event_service_pb2.RetryEventRequest(source="crm", event_id="none"))
    assert await listed(server) == before


async def test_audit_of_a_session_that_is_revoked_again_has_one_entry(server: Server) -> None:
    made = await server.backend(auth_service_pb2.CreateSessionRequest(user_id="ann"))
    request = auth_service_pb2.RevokeSessionRequest(user_id="ann", session_id=made.session_id)
    for _ in range(3):
        await server.backend(request)
    assert len(await listed(server, action=pb.AUDIT_ACTION_SESSION_REVOKED)) == 1


async def test_audit_list_is_for_operators_and_bound_to_its_filters(server: Server) -> None:
    for number in range(5):
        await server.backend(directory_service_pb2.DisableUserRequest(user_id=f"u{number}"))
    for caller in (server.backend, server.user("ann")):
        assert (await caller.refusal(ALL)).told == DENIED
    seen: list[str] = []
    token = ""
    while True:
        page = await server.operator(
            pb.ListAuditEntriesRequest(page_token=token, action=pb.AUDIT_ACTION_USER_DISABLED, page_size=2)
        )
        assert len(page.entries) <= 2
        seen += [one.subject for one in page.entries]
        token = page.next_page_token
        if not token:
            break
        strange = pb.ListAuditEntriesRequest(page_token=token, page_size=2, since_time=Timestamp(seconds=1))
        assert (await server.operator.refusal(strange)).fields == ("page_token",)
    assert seen == [f"user:u{number}" for number in reversed(range(5))]


@pytest.fixture
async def with_shop(database_urls: DatabaseUrls, redis_url: str, tmp_path: Any) -> AsyncIterator[Server]:
    """A server of two apps, with an operator of one of them."""
    apps = tmp_path / "apps.toml"
    apps.write_text('[apps.shop]\njwt_issuer = "https://shop.example"\n')
    tokens = f"{entry('operator', 'a-token-of-an-operator')},{entry('of-shop', 's' * 30, apps='shop')}"
    async with running_server(database_urls, redis_url, APPS_FILE=str(apps), ADMIN_TOKENS=tokens) as server:
        yield server


async def test_audit_list_shows_no_other_app(with_shop: Server) -> None:
    for app_id in ("default", "shop"):
        await with_shop.backend(directory_service_pb2.DisableUserRequest(app_id=app_id, user_id=f"of {app_id}"))
    deployment = """INSERT INTO audit_entries (app_id, action, actor, address, subject, request_id, details)
                    VALUES ('', 'EPOCHS_RENEWED', 'operator:a@b', '', 'deployment', '', '{}'),
                           ('', 'OF_A_LATER_VERSION', 'operator:a@b', '', 'deployment', '', '{}')"""
    await run_sql(with_shop.urls.app_url, deployment)
    of_shop = await with_shop.bearer("s" * 30)(ALL)
    assert {one.app_id for one in of_shop.entries} == {"shop"}
    assert (await with_shop.bearer("s" * 30).refusal(pb.ListAuditEntriesRequest(app_id="default"))).told == DENIED
    of_all = await with_shop.operator(pb.ListAuditEntriesRequest(app_id="shop"))
    assert {one.app_id for one in of_all.entries} == {"shop", ""}
    assert pb.AUDIT_ACTION_UNSPECIFIED in {one.action for one in of_all.entries}
    added = [one for one in of_all.entries if one.action == pb.AUDIT_ACTION_APP_ADDED]
    assert [(one.actor, one.subject) for one in added] == [("process", "app:shop")]
