"""The token endpoint of the fake FCM, and what it means for sends."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.fcm_client import GRANT_TYPE, SCOPE, assertion, claims, signed_in

pytestmark = pytest.mark.http


async def test_oauth_assertion_yields_a_token_that_sends() -> None:
    async with signed_in() as client:
        reply = await client.grant(assertion(client.fake.service_account))
        assert reply.status == 200
        assert reply.json["token_type"] == "Bearer"
        assert reply.json["expires_in"] == 3599
        assert len(reply.json["access_token"]) > 1000
        sent = await client.post(b'{"message":{"token":"a"}}', authorization=f"bearer {client.access_token}")
        assert sent.status == 200


CLAIMS: list[tuple[dict[str, Any], int, str | None]] = [
    ({"aud": "https://oauth2.googleapis.com/token"}, 200, None),
    ({"aud": "https://example.com/token"}, 400, "invalid_grant"),
    ({"aud": ["https://example.com/token"]}, 400, "invalid_grant"),
    ({"aud": None}, 400, "invalid_grant"),
    ({"iss": "somebody@else.iam.gserviceaccount.com"}, 400, "invalid_grant"),
    ({"scope": "https://www.googleapis.com/auth/drive"}, 400, "invalid_scope"),
    ({"scope": None}, 400, "invalid_scope"),
    ({"scope": f"https://www.googleapis.com/auth/drive {SCOPE}"}, 200, None),
    ({"exp": 1_000_000_000, "iat": 999_999_000}, 400, "invalid_grant"),
    ({"exp": None}, 400, "invalid_grant"),
    ({"iat": None}, 400, "invalid_grant"),
    ({"iat": 4_000_000_000, "exp": 4_000_000_100}, 400, "invalid_grant"),
    ({"exp": 4_000_000_000}, 400, "invalid_grant"),
    ({"exp": "soon"}, 400, "invalid_grant"),
    ({"exp": 1e400}, 400, "invalid_grant"),
    ({"sub": "user@example.com"}, 401, "unauthorized_client"),
]


async def test_oauth_assertion_claims_are_checked() -> None:
    async with signed_in() as client:
        for changes, status, error in CLAIMS:
            reply = await client.grant(assertion(client.fake.service_account, **changes))
            assert (reply.status, reply.json.get("error")) == (status, error), (changes, reply.body)


async def test_oauth_assertion_signature_and_key_are_checked() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    async with signed_in() as client:
        account = client.fake.service_account
        good = assertion(account)
        unsigned = jwt.encode(claims(account), "", "none")
        by_name = jwt.encode(claims(account), "a secret that both sides might think of", "HS256")
        forged = [assertion(account, key=other.decode()), good[:-4] + "AAAA", unsigned, by_name, "no.jwt.", "x" * 9999]
        forged.append(assertion(account, key_id="another"))
        replies = [await client.grant(text) for text in forged]
        assert [(reply.status, reply.json["error"]) for reply in replies] == [(400, "invalid_grant")] * len(forged)


async def test_oauth_form_malformed_is_refused() -> None:
    async with signed_in() as client:
        many = "&".join(f"a{n}=b" for n in range(100))
        errors = {
            "unsupported_grant_type": [b"", b"grant_type=password", b"\xff\xfe", b"{}"],
            "invalid_request": [f"grant_type={GRANT_TYPE}".encode(), many.encode()],
        }
        for error, bodies in errors.items():
            for body in bodies:
                reply = await client.request("POST", "/token", data=body)
                assert (reply.status, reply.json["error"]) == (400, error), body


async def test_send_without_a_live_access_token_answers_as_google() -> None:
    async with signed_in() as client:
        body = b'{"message":{"token":"a"}}'
        for authorization, reason in (
            ("Basic abc", "CREDENTIALS_MISSING"),
            ("Bearer", "CREDENTIALS_MISSING"),
            ("Bearer made-up", "ACCESS_TOKEN_TYPE_UNSUPPORTED"),
        ):
            reply = await client.post(body, authorization=authorization)
            assert reply.status == 401
            assert reply.json["error"]["status"] == "UNAUTHENTICATED"
            assert reply.json["error"]["details"][0]["reason"] == reason
            assert reply.headers["www-authenticate"].startswith("Bearer realm=")
            assert reply.code == ""  # a 401 with an FcmError is about the device's platform
        none = await client.request("POST", "/v1/projects/demo-project/messages:send", data=body)
        assert none.status == 401
        assert client.fake.stats().accepted == 0


async def test_oauth_access_token_expires() -> None:
    async with signed_in(token_life_s=0) as client:
        reply = await client.send()
        assert reply.status == 401
        assert reply.json["error"]["details"][0]["reason"] == "ACCESS_TOKEN_EXPIRED"


async def test_send_for_another_project_is_refused() -> None:
    async with signed_in(project_id="mine") as client:
        path = "/v1/projects/other/messages:send"
        reply = await client.post(b'{"message":{"token":"a"}}', path=path)
        assert (reply.status, reply.json["error"]["status"], reply.code) == (403, "PERMISSION_DENIED", "")
        stranger = await client.post(b"{}", path=path, authorization="Bearer made-up")
        assert stranger.status == 401
        assert client.fake.stats().statuses == {403: 1, 401: 1}


async def test_service_account_is_the_same_by_file_and_control(tmp_path: Path) -> None:
    async with signed_in() as client:
        path = tmp_path / "account.json"
        path.write_text("old", encoding="utf-8")
        path.chmod(0o644)
        client.fake.write_service_account(path)
        account = orjson.loads(path.read_bytes())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert account == client.fake.service_account == (await client.control("GET", "service-account")).json
        assert account["token_uri"] == f"{client.fake.base_url}/token"
        # By another name of the same machine, the audience is that name.
        by_name = account | {"token_uri": account["token_uri"].replace("127.0.0.1", "localhost")}
        headers = {"host": by_name["token_uri"].split("/")[2]}
        form = {"grant_type": GRANT_TYPE, "assertion": assertion(by_name)}
        assert (await client.request("POST", "/token", data=form, headers=headers)).status == 200
        assert (await client.request("POST", "/token", data=form)).status == 400


async def test_oauth_endpoint_can_fail_by_script_and_keeps_few_tokens() -> None:
    async with signed_in() as client:
        await client.control("POST", "faults", {"token": "/token", "kind": "503", "times": 1})
        good = assertion(client.fake.service_account)
        assert [(await client.grant(good)).status for _ in range(2)] == [503, 200]
        assert client.fake.stats().statuses == {}
        assert client.fake.stats().token_calls == 2  # of three, one did not get through
        before = time.time()
        for _ in range(1_000):
            client.fake.token_endpoint.grant(
                f"grant_type={GRANT_TYPE}&assertion={good}".encode(), client.fake.base_url + "/token"
            )
        assert len(client.fake.token_endpoint.active_tokens) == 1_000
        assert min(client.fake.token_endpoint.active_tokens.values()) > before + 3590
        assert (await client.send()).status == 401  # the oldest went first
