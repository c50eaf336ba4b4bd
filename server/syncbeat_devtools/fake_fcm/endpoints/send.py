"""`messages:send`: checks, quota, faults, acceptance. The hot path."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

from syncbeat_devtools.fake_fcm.endpoints.oauth import Issuer
from syncbeat_devtools.fake_fcm.faults.injector import Stage
from syncbeat_devtools.fake_fcm.faults.plan import FaultPlan, UnreadableFault
from syncbeat_devtools.fake_fcm.ledger import Ledger
from syncbeat_devtools.fake_fcm.message.parser import Message, read_message
from syncbeat_devtools.fake_fcm.message.schema import Violation
from syncbeat_devtools.fake_fcm.responses import (
    Answer,
    Exchange,
    fcm_error,
    google_error,
    permission_denied,
    quota_exceeded,
    unauthenticated,
)
from syncbeat_devtools.fake_fcm.settings import FakeFcmSettings

_WINDOW_S = 60


class Sending:
    """The send endpoint of one project."""

    def __init__(
        self, settings: FakeFcmSettings, issuer: Issuer, faults: FaultPlan, ledger: Ledger, stage: Stage
    ) -> None:
        self._project_id = settings.project_id
        self._issuer = issuer
        self._faults = faults
        self._ledger = ledger
        self._stage = stage
        self._per_minute = settings.messages_per_minute
        self._window_start = 0.0
        self._window_used = 0
        self._name = b'{\n  "name": "projects/%b/messages/' % settings.project_id.encode()
        # Ids look like Google's (microseconds, then a hash) and never repeat in one run.
        self._first_id = int(time.time() * 1_000_000)
        self.latency_s = settings.latency_ms / 1000
        self.requests = 0
        self.statuses: Counter[int] = Counter()

    def handle(self, exchange: Exchange, authorization: bytes | None, body: bytes) -> Answer | None:
        """Answer a send for this project, or None when the answer comes later through the exchange."""
        self.requests += 1
        now = time.time()
        if authorization is None or self._issuer.live.get(authorization, 0.0) <= now:
            reason = self._issuer.refusal_of(authorization, now)
            if reason is not None:
                return self._finish(exchange, unauthenticated(reason))
        if self._per_minute is not None:
            wait_s = self._over_quota(self._per_minute)
            if wait_s is not None:
                return self._finish(exchange, quota_exceeded(self._project_id, ((b"retry-after", b"%d" % wait_s),)))
        try:
            message = read_message(body)
            fault = None if message.validate_only else self._faults.take(message.target)
        except Violation as violation:
            return self._finish(exchange, violation.answer())
        except UnreadableFault as unreadable:
            refusal = google_error(400, "INVALID_ARGUMENT", str(unreadable), [fcm_error("INVALID_ARGUMENT")])
            return self._finish(exchange, refusal)
        if fault is None:
            return self._finish(exchange, self._accept(message))
        answer = self._stage.perform(fault, exchange, message.target, lambda: self._accept(message), self.statuses)
        return None if answer is None else self._finish(exchange, answer)

    def wrong_project(self, exchange: Exchange, authorization: bytes | None, project: str) -> Answer | None:
        """Refuse a send for another project."""
        self.requests += 1
        reason = self._issuer.refusal_of(authorization, time.time())
        answer = permission_denied(project) if reason is None else unauthenticated(reason)
        return self._finish(exchange, answer)

    def reset(self) -> None:
        """Forget the counters and the quota used."""
        self.requests = 0
        self.statuses.clear()
        self._window_start = 0.0

    def _accept(self, message: Message) -> Answer:
        if message.validate_only:
            return Answer(200, self._name + b'fake_message_id"\n}\n')
        number = self._ledger.accept(message).sequence
        return Answer(200, b'%b0:%d%%%016x"\n}\n' % (self._name, self._first_id + number, number))

    def _finish(self, exchange: Exchange, answer: Answer) -> Answer | None:
        self.statuses[answer.status] += 1
        if not self.latency_s:
            return answer
        asyncio.get_running_loop().call_later(self.latency_s, exchange.answer, answer)
        return None

    def _over_quota(self, per_minute: int) -> int | None:
        """Seconds until the quota is full again when it is used up.

        FCM's bucket is refilled each minute, not on the clock's minutes, and a 429 does not count against it.
        """
        now = time.monotonic()
        if now >= self._window_start + _WINDOW_S:
            self._window_start, self._window_used = now, 0
        if self._window_used >= per_minute:
            return math.ceil(self._window_start + _WINDOW_S - now)
        self._window_used += 1
        return None
