"""The baseline of the push figures: firebase-admin's own `send_each_async`, in a process of its own.

Its URL is private, and is overridden here alone, so that it sends to the fake. `python -m bench.firebase_sender
ACCOUNT URL COUNT` prints messages per second and microseconds of CPU per message, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
import warnings

import firebase_admin
from firebase_admin import credentials, messaging
from google.auth.credentials import Credentials as GoogleCredentials

_BATCH = 500  # the maximum of one call


class _OneToken(GoogleCredentials):
    def __init__(self, token: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # google-auth leaves it untyped
        self.token = token

    def refresh(self, request: object) -> None:
        """Keep the token."""


def main() -> None:
    """Send the messages and print the cost."""
    account, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    warnings.simplefilter("ignore", DeprecationWarning)  # of Message(token=...), the usual way to write it
    messaging._MessagingService.FCM_URL = url + "/v1/projects/{0}/messages:send"
    certificate = credentials.Certificate(account)
    # Fetched in advance, because a service account's own refresh would also query its region over the network.
    credential = _OneToken(certificate.get_access_token().access_token)
    app = firebase_admin.initialize_app(credential, {"projectId": certificate.project_id})
    print(json.dumps(asyncio.run(_send(app, count))))


async def _send(app: firebase_admin.App, count: int) -> dict[str, float]:
    await _send_batch(app, 20, "warm")  # the connection, and the access token
    before, started = _cpu_s(), time.perf_counter()
    for number in range(0, count, _BATCH):
        await _send_batch(app, min(_BATCH, count - number), str(number))
    took = time.perf_counter() - started
    return {"per_s": count / took, "cpu_us": (_cpu_s() - before) / count * 1e6}


async def _send_batch(app: firebase_admin.App, count: int, name: str) -> None:
    notification = messaging.Notification(title="Anna", body="is reading page 12 with you")
    messages = [
        messaging.Message(token=f"token-of-user-{number:05}-{name}", notification=notification)
        for number in range(count)
    ]
    answer = await messaging.send_each_async(messages, app=app)
    if answer.failure_count:
        raise RuntimeError(f"{answer.failure_count} messages failed: {answer.responses[0].exception}")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
