"""Joining by link tokens over the wire, and the attacks on it, which join nobody."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from syncbeat.v1 import auth_service_pb2 as pb
from syncbeat.v1 import directory_service_pb2, ops_service_pb2
from syncbeat_server.auth.model import KeyRow
from syncbeat_server.storage.postgres.database import Database
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import wait_until
from tests.support.identities import (
    FIRST_ISSUER,
    NEW_ISSUER,
    OTHER_ISSUER,
    SIGNER,
    WHO_AM_I,
    anybody,
    apps_file,
    identity_rows,
    link_request,
    link_token,
    linked,
    new_token,
    refused,
    sign_in,
    signed_grant,
)
from tests.support.rpc_server import METHODS, Server, refusal_of, running_server

pytestmark = pytest.mark.rpc

INVALID, EXPIRED, REVOKED = (("UNAUTHENTICATED", f"TOKEN_{why}") for why in ("INVALID", "EXPIRED", "REVOKED"))
CONFLICT = ("FAILED_PRECONDITION", "IDENTITY_CONFLICT")
NOT_CONFIGURED = ("FAILED_PRECONDITION", "NOT_CONFIGURED")
NOT_FOUND = ("NOT_FOUND", "NOT_FOUND")


async def test_link_token_joins_once_and_says_so(joined: Server, database: Database) -> None:
    await sign_in(joined.user("ann"))
    link = await link_token(joined, "ann")
    answer = await linked(joined, new_token("uuid-1"), link)
    assert (answer.user_id, answer.already_linked) == ("ann", False)
    again = await linked(joined, new_token("uuid-1"), link)  # the answer may have been lost
    assert (again.user_id, again.already_linked) == ("ann", True)
    assert await identity_rows(database) == [
        (NEW_ISSUER, "uuid-1", "ann", "LINK_TOKEN"),
        (FIRST_ISSUER, "ann", "ann", "HOME"),
    ]
    await joined.register("ann", "phone")
    for caller in (joined.user("ann"), joined.bearer(new_token("uuid-1"))):
        assert [one.device_id for one in (await caller(WHO_AM_I)).devices] == ["phone"]
    found = await joined.operator(ops_service_pb2.ListAuditEntriesRequest(subject="user:ann"))
    told = {
        ops_service_pb2.AuditAction.Name(one.action): (one.actor, json.loads(one.details_json)) for one in found.entries
    }
    issued, joins = told["AUDIT_ACTION_LINK_TOKEN_ISSUED"], told["AUDIT_ACTION_IDENTITY_LINKED"]
    assert (issued[0], issued[1]["issuer"]) == ("service:backend", NEW_ISSUER)
    assert joins == (
        "anonymous",
        {"issuer": NEW_ISSUER, "of_subject": "uuid-1", "by": "LINK_TOKEN", "link_id": issued[1]["link_id"]},
    )
    assert len(found.entries) == 2
    assert all(link not in one.details_json for one in found.entries)


async def test_first_sign_in_before_the_link_is_taken_over_while_it_has_nothing(
    joined: Server, database: Database
) -> None:
    await sign_in(joined.user("ann"))
    fresh = joined.bearer(new_token("uuid-1"))
    await sign_in(fresh)  # a user of its own, as yet without anything
    assert (await linked(joined, new_token("uuid-1"), await link_token(joined, "ann"))).user_id == "ann"
    await joined.register("ann", "phone")
    assert [one.device_id for one in (await fresh(WHO_AM_I)).devices] == ["phone"]
    assert (NEW_ISSUER, "uuid-1", "ann", "LINK_TOKEN") in await identity_rows(database)


async def test_replayed_link_token_is_refused(joined: Server, database: Database) -> None:
    await sign_in(joined.user("ann"))
    link, second = await link_token(joined, "ann"), await link_token(joined, "ann")
    await linked(joined, new_token("uuid-1"), link)
    before = await identity_rows(database)
    assert await refused(joined, new_token("thief"), link) == REVOKED
    assert await refused(joined, new_token("thief"), second) == CONFLICT  # ann has her subject there
    assert await identity_rows(database) == before
    await sign_in(joined.bearer(new_token("thief")))  # whoever it is, it is not ann
    assert not (await joined.bearer(new_token("thief"))(WHO_AM_I)).devices


async def test_link_token_of_a_revoked_or_blocked_user_is_refused(joined: Server, database: Database) -> None:
    for user_id, shut_out in (
        ("ann", pb.RevokeUserRequest(user_id="ann")),
        ("bob", directory_service_pb2.DisableUserRequest(user_id="bob")),
        ("carl", directory_service_pb2.DeleteUserRequest(user_id="carl")),
    ):
        await sign_in(joined.user(user_id))
        link = await link_token(joined, user_id)
        await joined.backend(shut_out)
        assert await refused(joined, new_token(f"uuid-of-{user_id}"), link) == REVOKED, user_id
    assert not await identity_rows(database)
    for user_id in ("bob", "carl", "nobody"):
        request = pb.CreateLinkTokenRequest(user_id=user_id, issuer=NEW_ISSUER)
        assert (await joined.backend.refusal(request)).told == NOT_FOUND


async def test_blocked_subject_does_not_escape_by_joining(joined: Server) -> None:
    await sign_in(joined.user("ann"))
    for subject, shut_out in (
        ("eve", directory_service_pb2.DisableUserRequest(user_id="eve")),
        ("fay", directory_service_pb2.DeleteUserRequest(user_id="fay")),
        ("gil", pb.RevokeUserRequest(user_id="gil")),
        ("new", directory_service_pb2.DisableUserRequest(user_id="new")),  # it never signed in
    ):
        token = new_token(subject)
        if subject != "new":
            await sign_in(joined.bearer(token))
        await joined.backend(shut_out)
        assert await refused(joined, token, await link_token(joined, "ann")) == REVOKED, subject


async def test_subject_that_was_a_user_by_mistake_can_be_joined_once_it_has_nothing(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    async with running_server(database_urls, redis_url, APPS_FILE=apps_file(tmp_path, "jwt_leeway_s = 0")) as server:
        await sign_in(server.user("ann"))
        await sign_in(server.bearer(new_token("uuid-1")))
        await server.register("uuid-1", "phone")
        assert await refused(server, new_token("uuid-1"), await link_token(server, "ann")) == CONFLICT
        await server.backend(directory_service_pb2.DeleteUserRequest(user_id="uuid-1"))
        await server.backend(directory_service_pb2.EnableUserRequest(user_id="uuid-1"))
        link = await link_token(server, "ann")

        async def joins() -> bool:  # by a token of a second after the deletion
            fresh = link_request(new_token("uuid-1", age=timedelta(0)), link)
            return await anybody(server).outcome(METHODS["LinkIdentityRequest"], fresh.SerializeToString()) is None

        await wait_until(joins)


async def test_link_tokens_out_of_place_are_refused(joined: Server, database: Database) -> None:
    await sign_in(joined.user("ann"))
    token, other = new_token("uuid-1"), new_token("uuid-1", OTHER_ISSUER)
    session = await joined.backend(pb.CreateSessionRequest(user_id="ann"))
    shop = KeyRow(replace(SIGNER.issuer, app_id="shop", name="syncbeat:shop"), SIGNER.kid, "ES256", SIGNER.key)
    for told, access_token, link in (
        (EXPIRED, token, signed_grant(expires_at=datetime.now(UTC))),
        (INVALID, other, signed_grant()),  # for another issuer
        (INVALID, token, signed_grant(issuer=FIRST_ISSUER)),
        (INVALID, token, signed_grant(app_id="shop")),
        (INVALID, token, signed_grant(shop, app_id="shop")),
        (INVALID, token, session.access_token),
        (INVALID, token, session.refresh_token),
        (INVALID, token, token),
        (INVALID, session.access_token, signed_grant()),
        (INVALID, signed_grant(), signed_grant()),
        (INVALID, "no token", signed_grant()),
        (EXPIRED, new_token("uuid-1", life=timedelta(seconds=-60)), signed_grant()),
        (REVOKED, token, signed_grant(generation=7)),
        (REVOKED, token, signed_grant(user_id="nobody")),
    ):
        assert await refused(joined, access_token, link) == told, (access_token, link)
    assert not await identity_rows(database)
    assert (await linked(joined, token, signed_grant())).user_id == "ann"  # nothing else was wrong with them


async def test_bad_tokens_of_an_address_are_counted(
    database_urls: DatabaseUrls, redis_url: str, tmp_path: Path
) -> None:
    file = apps_file(tmp_path)
    async with running_server(database_urls, redis_url, APPS_FILE=file, WRONG_REFRESHES_PER_MINUTE="3") as server:
        await sign_in(server.user("ann"))
        for _ in range(3):
            assert await refused(server, new_token("uuid-1"), "bad") == INVALID
        assert await refused(server, new_token("uuid-1"), "bad") == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
        assert (await linked(server, new_token("uuid-1"), await link_token(server, "ann"))).user_id == "ann"


async def test_two_people_are_never_joined(joined: Server, database: Database) -> None:
    await sign_in(joined.user("ann"))
    for subject, make in (
        ("with-device", joined.register("with-device", "phone")),
        ("with-scope", joined.add("s", "with-scope")),
        ("with-tier", joined.backend(directory_service_pb2.SetUserTierRequest(user_id="with-tier", tier=""))),
        ("with-session", joined.backend(pb.CreateSessionRequest(user_id="with-session"))),
    ):
        await make
        if subject == "with-tier":
            async with database.connection() as conn:
                await conn.execute(
                    "INSERT INTO user_tiers (app_id, user_id, tier, updated_at) VALUES ('default', $1, 'pro', now())",
                    subject,
                )
        assert await refused(joined, new_token(subject), await link_token(joined, "ann")) == CONFLICT, subject
    await sign_in(joined.user("bob"))
    assert (await linked(joined, new_token("uuid-1"), await link_token(joined, "ann"))).user_id == "ann"
    # The subject is ann's by now; ann has her subject there; and bob is the first issuer's own subject.
    assert await refused(joined, new_token("uuid-1"), await link_token(joined, "bob")) == CONFLICT
    for user_id, issuer in (("ann", NEW_ISSUER), ("bob", FIRST_ISSUER)):
        request = pb.CreateLinkTokenRequest(user_id=user_id, issuer=issuer)
        assert (await joined.backend.refusal(request)).told == CONFLICT
    # A subject of the new issuer that is a person at a third one stays that person.
    await linked(joined, new_token("at-other", OTHER_ISSUER), await link_token(joined, "bob", OTHER_ISSUER))
    await sign_in(joined.user("carl"))
    assert await refused(joined, new_token("bob"), await link_token(joined, "carl")) == CONFLICT


async def test_issuer_that_keeps_the_ids_of_users_is_joined_like_others(joined: Server, database: Database) -> None:
    await joined.register("ann", "phone")
    await sign_in(joined.user("ann"))
    fresh = joined.bearer(new_token("ann"))
    assert (await fresh.refusal(WHO_AM_I)).told == REVOKED
    assert (await linked(joined, new_token("ann"), await link_token(joined, "ann"))).user_id == "ann"
    for caller in (fresh, joined.user("ann")):
        assert (await caller(WHO_AM_I)).devices
    assert await identity_rows(database) == [
        (NEW_ISSUER, "ann", "ann", "LINK_TOKEN"),
        (FIRST_ISSUER, "ann", "ann", "HOME"),
    ]


async def test_same_subject_of_another_issuer_is_refused(joined: Server) -> None:
    await joined.register("ann", "phone")
    await sign_in(joined.user("ann"))
    for issuer in (NEW_ISSUER, OTHER_ISSUER):
        caller = joined.bearer(new_token("ann", issuer))
        assert (await caller.refusal(WHO_AM_I)).told == REVOKED
        assert (await caller.refusal(directory_service_pb2.GetDeviceRequest(device_id="phone"))).told == REVOKED
    await sign_in(joined.bearer(new_token("uuid-1")))
    assert (await joined.user("uuid-1").refusal(WHO_AM_I)).told == REVOKED


async def test_link_token_is_for_an_issuer_of_the_app(joined: Server) -> None:
    await sign_in(joined.user("ann"))
    for issuer in ("https://unknown.example", "syncbeat:default"):
        refusal = await joined.backend.refusal(pb.CreateLinkTokenRequest(user_id="ann", issuer=issuer))
        assert (refusal.fields, refusal.field_reasons) == (("issuer",), ("UNKNOWN_VALUE",))
    for ttl in (Duration(), Duration(seconds=604_801)):
        refusal = await joined.backend.refusal(pb.CreateLinkTokenRequest(user_id="ann", issuer=NEW_ISSUER, ttl=ttl))
        assert refusal.fields == ("ttl",)


async def test_race_of_two_links_of_one_subject_joins_one(joined: Server, database: Database) -> None:
    people = [f"p{number}" for number in range(8)]
    for user_id in people:
        await sign_in(joined.user(user_id))
    links = [await link_token(joined, user_id) for user_id in people]
    token = new_token("uuid-1")
    answers = await asyncio.gather(
        sign_in(joined.bearer(token)),
        *(linked(joined, token, link) for link in links),
        return_exceptions=True,
    )
    joins = [one for one in answers[1:] if not isinstance(one, BaseException)]
    assert len(joins) == 1
    assert not joins[0].already_linked
    for error in answers[1:]:
        if isinstance(error, grpc.aio.AioRpcError):
            assert refusal_of(error).told == CONFLICT
    rows = [row for row in await identity_rows(database) if row[0] == NEW_ISSUER]
    assert [row[1:3] for row in rows] == [("uuid-1", joins[0].user_id)]


async def test_race_of_two_subjects_for_one_link_token_joins_one(joined: Server, database: Database) -> None:
    for number in range(5):
        user_id = f"p{number}"
        await sign_in(joined.user(user_id))
        link = await link_token(joined, user_id)
        subjects = [f"{user_id}-{letter}" for letter in "abcd"]
        answers = await asyncio.gather(
            *(linked(joined, new_token(subject), link) for subject in subjects), return_exceptions=True
        )
        assert sum(not isinstance(one, BaseException) for one in answers) == 1
        told = {refusal_of(one).told for one in answers if isinstance(one, grpc.aio.AioRpcError)}
        assert told == {REVOKED}
        assert sum(row[2] == user_id and row[0] == NEW_ISSUER for row in await identity_rows(database)) == 1


async def test_shared_subjects_are_never_linked(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    file = apps_file(tmp_path, new='unlinked_subjects = "shared"')
    async with running_server(database_urls, redis_url, APPS_FILE=file) as server:
        await server.register("ann", "phone")
        await sign_in(server.user("ann"))
        assert (await server.bearer(new_token("ann"))(WHO_AM_I)).devices  # as the operator has said
        request = pb.CreateLinkTokenRequest(user_id="ann", issuer=NEW_ISSUER)
        assert (await server.backend.refusal(request)).fields == ("issuer",)
        assert await refused(server, new_token("uuid-1"), signed_grant()) == INVALID


async def test_link_tokens_need_session_keys(database_urls: DatabaseUrls, redis_url: str, tmp_path: Path) -> None:
    file = apps_file(tmp_path)
    async with running_server(database_urls, redis_url, APPS_FILE=file, SESSION_KEYS="", SESSION_SECRETS="") as server:
        await sign_in(server.user("ann"))
        request = pb.CreateLinkTokenRequest(user_id="ann", issuer=NEW_ISSUER)
        assert (await server.backend.refusal(request)).told == NOT_CONFIGURED
        assert await refused(server, new_token("uuid-1"), signed_grant()) == INVALID
