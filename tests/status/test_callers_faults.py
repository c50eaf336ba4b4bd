"""Tests that callers spend no error budget by what they bring about themselves, authenticated or not."""

from __future__ import annotations

import json
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from syncbeat.v1 import directory_service_pb2
from syncbeat.v1 import ops_service_pb2 as pb
from syncbeat_server.rpc.pipeline import request_body
from tests.support.databases import DatabaseUrls
from tests.support.fake_clock import ahead, wait_until
from tests.support.forged_tokens import Forger
from tests.support.held_clock import HeldClock
from tests.support.http_sites import site
from tests.support.raw_http2 import grpc_message, raw_connection
from tests.support.rpc_server import METHODS, path_of, running_server

pytestmark = pytest.mark.rpc

ISSUER = "https://project.example/auth/v1"
KEY = ec.generate_private_key(ec.SECP256R1())
LIST = directory_service_pb2.ListDevicesRequest()
CALLS = 4


async def publish(_request: web.Request) -> web.Response:
    public = jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    return web.Response(text=json.dumps({"keys": [{**public, "kid": "k", "alg": "ES256", "use": "sig"}]}))


def token(kid: str) -> str:
    return jwt.encode(Forger(HeldClock().now()).claims(), KEY, "ES256", headers={"kid": kid})


async def test_unknown_callers_spend_no_budget(database_urls: DatabaseUrls, redis_url: str) -> None:
    async with site("/keys", publish) as address:
        variables: Any = {"JWKS_URL": f"{address}/keys", "JWT_SECRETS": "", "JWT_ISSUER": ISSUER}
        async with running_server(database_urls, redis_url, **variables, JWT_SUBJECTS="uuid") as server:
            told = [(await server.bearer(token(f"invented {n}")).refusal(LIST)).told[0] for n in range(CALLS)]
            assert told == ["UNAUTHENTICATED", *["UNAVAILABLE"] * (CALLS - 1)]
            async with raw_connection(server.address) as raw:
                half = grpc_message(b"x" * 100)[:50]
                streams = [raw.start(path_of(METHODS["RefreshSessionRequest"]), half, end=False) for _ in range(2)]
                with ahead(request_body.READ_TIMEOUT_S):
                    await wait_until(lambda: all(raw.answers[one].is_over for one in streams))
                assert {raw.answers[one].status for one in streams} == {"4"}
            report = await server.backend(pb.GetSloReportRequest())
            status = await server.operator(pb.GetStatusRequest())
    assert report.workload.calls >= CALLS + 2
    assert report.workload.errors == 0
    budgets = {one.name: one.error_budget_remaining for one in report.objectives}
    assert budgets["availability"] == budgets["errors"] == 1.0
    assert {one.method: one.errors for one in status.rpcs if one.errors} == {}
