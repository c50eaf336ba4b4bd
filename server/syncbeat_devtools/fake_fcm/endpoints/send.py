"""The endpoint `messages:send`: authorization, quota, validation, faults, acceptance. The hot path."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

from syncbeat_devtools.fake_fcm.endpoints.oauth import TokenEndpoint
from syncbeat_devtools.fake_fcm.faults.injector import FaultInjector
from syncbeat_devtools.fake_fcm.faults.plan import FaultPlan, MalformedFaultToken
from syncbeat_devtools.fake_fcm.ledger import Ledger
from syncbeat_devtools.fake_fcm.message.parser import Message, parse_message
from syncbeat_devtools.fake_fcm.message.schema import Violation
from syncbeat_devtools.fake_fcm.responses import (
    Exchange,
    Response,
    fcm_error,
    google_error,
    permission_denied,
    quota_exceeded,
    unauthenticated,
)
from syncbeat_devtools.fake_fcm.settings import FakeFcmSettings

_WINDOW_S = 60


class SendEndpoint:
    """The send endpoint of one project."""

    def __init__(
        self,
        settings: FakeFcmSettings,
        token_endpoint: TokenEndpoint,
        faults: FaultPlan,
        ledger: Ledger,
        injector: FaultInjector,
    ) -> None:
        self._project_id = settings.project_id
        self._token_endpoint = token_endpoint
        self._faults = faults
        self._ledger = ledger
        self._injector = injector
        self._per_minute = settings.messages_per_minute
        self._window_start = 0.0
        self._window_used = 0
        self._name = b'{\n  "name": "projects/%b/messages/' % settings.project_id.encode()
        # Ids look like Google's (microseconds, then a hash) and are unique in one run.
        self._first_id = int(time.time() * 1_000_000)
        self.latency_s = settings.latency_ms / 1000
        self.requests = 0
        self.statuses: Counter[int] = Counter()

    def handle(self, exchange: Exchange, authorization: bytes | None, body: bytes) -> Response | None:
        """Answer a send for this project. Returns None if the response comes later, through the exchange."""
        self.requests += 1
        now = time.time()
        if authorization is None or self._token_endpoint.active_tokens.get(authorization, 0.0) <= now:
            reason = self._token_endpoint.rejection_reason(authorization, now)
            if reason is not None:
                return self._finish(exchange, unauthenticated(reason))
        if self._per_minute is not None:
            wait_s = self._quota_wait_s(self._per_minute)
            if wait_s is not None:
                return self._finish(exchange, quota_exceeded(self._project_id, ((b"retry-after", b"%d" % wait_s),)))
        try:
            message = parse_message(body)
            fault = None if message.validate_only else self._faults.next_fault(message.target)
        except Violation as violation:
            return self._finish(exchange, violation.response())
        except MalformedFaultToken as malformed:
            refusal = google_error(400, "INVALID_ARGUMENT", str(malformed), [fcm_error("INVALID_ARGUMENT")])
            return self._finish(exchange, refusal)
        if fault is None:
            return self._finish(exchange, self._accept(message))
        response = self._injector.inject(fault, exchange, message.target, lambda: self._accept(message), self.statuses)
        return None if response is None else self._finish(exchange, response)

    def reject_project(self, exchange: Exchange, authorization: bytes | None, project: str) -> Response | None:
        """Refuse a send for another project."""
        self.requests += 1
        reason = self._token_endpoint.rejection_reason(authorization, time.time())
        response = permission_denied(project) if reason is None else unauthenticated(reason)
        return self._finish(exchange, response)

    def reset(self) -> None:
        """Clear the counters and the used quota."""
        self.requests = 0
        self.statuses.clear()
        self._window_start = 0.0

    def _accept(self, message: Message) -> Response:
        if message.validate_only:
            return Response(200, self._name + b'fake_message_id"\n}\n')
        number = self._ledger.accept(message).sequence
        return Response(200, b'%b0:%d%%%016x"\n}\n' % (self._name, self._first_id + number, number))

    def _finish(self, exchange: Exchange, response: Response) -> Response | None:
        self.statuses[response.status] += 1
        if not self.latency_s:
            return response
        asyncio.get_running_loop().call_later(self.latency_s, exchange.respond, response)
        return None

    def _quota_wait_s(self, per_minute: int) -> int | None:
        """Count a send against the quota. Returns None, or the seconds until the quota is refilled if it is used up.

        FCM refills its bucket each minute, not on the clock's minutes, and a 429 does not count against it.
        """
        now = time.monotonic()
        if now >= self._window_start + _WINDOW_S:
            self._window_start, self._window_used = now, 0
        if self._window_used >= per_minute:
            return math.ceil(self._window_start + _WINDOW_S - now)
        self._window_used += 1
        return None
