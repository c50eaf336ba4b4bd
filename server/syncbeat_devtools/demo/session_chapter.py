"""The session chapter: created on one server, refreshed on the other, revoked on both; and no token in the logs."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from syncbeat import SessionTokens, SyncbeatClient, explain
from syncbeat.v1 import auth_service_pb2, directory_service_pb2, error_reason_pb2
from syncbeat_devtools.demo.devices import StreamingDevice, eventually
from syncbeat_devtools.demo.report import Report
from syncbeat_devtools.demo.stage import Stage

_REVOKED = "ERROR_REASON_TOKEN_REVOKED"
_REFRESHES = 20  # of one token, at once
# The start of a JWT, of a refresh token, or of an authorization value.
_SECRET = re.compile(r"eyJ[\w-]{8,}|sbr_[\w-]{8,}|[Bb]earer [\w.-]{8,}")


async def play_session_chapter(stage: Stage, report: Report) -> None:
    """Play the chapter."""
    report.chapter("Alice signs in with a session, and loses that phone")
    first, second = stage.servers
    async with (
        stage.client(stage.identity.service_token, first) as backend,
        stage.client("", first) as here,
        stage.client("", second) as there,
    ):
        made = await backend.auth.CreateSession(auth_service_pb2.CreateSessionRequest(user_id="alice"))
        spend = auth_service_pb2.RefreshSessionRequest(refresh_token=made.refresh_token)
        callers = [here, there] * (_REFRESHES // 2)
        answers = await asyncio.gather(*(one.auth.RefreshSession(spend) for one in callers))
        successors = {answer.refresh_token for answer in answers}
        report.claim(
            f"{_REFRESHES} refreshes on both servers gave one successor", len(successors) == 1, len(successors)
        )
        tokens = SessionTokens.of(answers[0])
        async with stage.client(tokens.access_token, second) as phone:
            await _revoke_phone(backend, phone, tokens, report)
        refused = await _reason(there, tokens.refresh_token)
        report.claim("its refresh token is dead on the other server too", refused == _REVOKED, refused)


async def _revoke_phone(backend: SyncbeatClient, phone: SyncbeatClient, tokens: SessionTokens, report: Report) -> None:
    stream = StreamingDevice(phone, "")
    try:
        await stream.wait_open()
        began = time.monotonic()
        revoke = auth_service_pb2.RevokeSessionRequest(user_id="alice", session_id=tokens.session_id)
        await backend.auth.RevokeSession(revoke)

        async def refused() -> bool:
            return await _reason_of(phone) == _REVOKED

        heard = await eventually(refused)
        delay_s = time.monotonic() - began
        # Without a notification the other server would accept the token for a minute.
        report.claim("revoked on one server, the other refuses it", heard, f"{delay_s:.2f} s")
        ended = await stream.ended()
        name = error_reason_pb2.ErrorReason.Name(explain(ended).reason) if ended is not None else "open"
        report.claim("and its stream has ended", name == _REVOKED, name)
    finally:
        await stream.close()


async def _reason_of(client: SyncbeatClient) -> str:
    call = client.directory.ListDevices(directory_service_pb2.ListDevicesRequest())
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return _name(outcome)


async def _reason(client: SyncbeatClient, refresh_token: str) -> str:
    call = client.auth.RefreshSession(auth_service_pb2.RefreshSessionRequest(refresh_token=refresh_token))
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return _name(outcome)


def _name(outcome: object) -> str:
    if not isinstance(outcome, Exception):
        return "OK"
    details = explain(outcome)  # type: ignore[arg-type]  # a call fails with nothing else, and only rpc names its type
    return str(error_reason_pb2.ErrorReason.Name(details.reason))


def count_lines_with_secrets(folder: Path) -> int:
    """Return the number of log lines in a folder that contain a token."""
    texts = [path.read_text(errors="replace") for path in folder.glob("*.log")]
    return sum(bool(_SECRET.search(line)) for text in texts for line in text.splitlines())
