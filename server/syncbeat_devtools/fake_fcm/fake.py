"""The fake without its sockets: scripted by tests, and read by them."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import orjson

from syncbeat_devtools.fake_fcm.endpoints.oauth import TokenEndpoint
from syncbeat_devtools.fake_fcm.endpoints.send import SendEndpoint
from syncbeat_devtools.fake_fcm.faults.injector import FaultInjector
from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultPlan
from syncbeat_devtools.fake_fcm.ledger import AcceptedMessage, DeviceView, Effect, Ledger
from syncbeat_devtools.fake_fcm.settings import FakeFcmSettings


@dataclass(frozen=True)
class FakeFcmStats:
    """Counters since the start or the last reset; evictions from the ledger do not lower them.

    Attributes:
        requests: sends received, accepted or not.
        accepted: messages accepted.
        kept: accepted messages that the ledger still holds.
        last_sequence: sequence of the newest accepted message.
        statuses: responses to sends by HTTP status.
        shown: notifications that appeared on devices.
        replaced: notifications that replaced one with the same tag.
        data: data-only messages.
        repeated_data: data-only messages whose `delivery_id` the device had received before.
        faults: faults applied, by kind.
        resets: connections reset by faults.
        hanging: requests that hang now.
        token_calls: calls of the token endpoint.
        connections: open TCP connections.
    """

    requests: int
    accepted: int
    kept: int
    last_sequence: int
    statuses: dict[int, int]
    shown: int
    replaced: int
    data: int
    repeated_data: int
    faults: dict[str, int]
    resets: int
    hanging: int
    token_calls: int
    connections: int


class FakeFcm:
    """A running fake, made by `running_fake_fcm`. Use it only in the thread of its event loop.

    Attributes:
        settings: the settings it was started with.
        base_url: its address, without a slash at the end.
        ca_file: the CA certificate that clients must trust if TLS is on.
        service_account: the JSON of a service account whose token_uri is this fake.
    """

    def __init__(self, settings: FakeFcmSettings, token_endpoint: TokenEndpoint) -> None:
        self.settings = settings
        self.token_endpoint = token_endpoint
        self.ledger = Ledger(settings.max_records, settings.max_bytes)
        self.plan = FaultPlan()
        self.injector = FaultInjector(settings.project_id)
        self.send_endpoint = SendEndpoint(settings, token_endpoint, self.plan, self.ledger, self.injector)
        self.base_url = ""
        self.ca_file: Path | None = None
        self.connections: set[asyncio.Transport] = set()

    @property
    def service_account(self) -> dict[str, str]:
        """Return the JSON of the service account."""
        return self.token_endpoint.service_account(f"{self.base_url}/token")

    def write_service_account(self, path: Path | str) -> None:
        """Write the service account's JSON to a file that only its owner may read (mode 0600)."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(orjson.dumps(self.service_account, option=orjson.OPT_INDENT_2))

    def script(self, target: str, fault: Fault, *, share: float = 1.0, seed: int = 0) -> None:
        """Apply a fault to sends for `target`: a registration token, `*` for all, or `/token` for the token endpoint.

        Raises:
            ValueError: as `FaultPlan.script`.
        """
        self.plan.script(target, fault, share=share, seed=seed)

    def clear_faults(self, target: str | None = None) -> None:
        """Drop the scripted faults of one target, or all."""
        self.plan.clear(target)

    def set_latency(self, latency_ms: int) -> None:
        """Delay every further response to a send by so many milliseconds.

        Raises:
            ValueError: it is negative.
        """
        if latency_ms < 0:
            raise ValueError("latency_ms must not be negative")
        self.send_endpoint.latency_s = latency_ms / 1000

    def deliveries(self, *, token: str | None = None, after: int = 0, limit: int = 1000) -> list[AcceptedMessage]:
        """Return accepted messages after a sequence, oldest first."""
        return self.ledger.list_after(after, target=token, limit=limit)

    async def wait_for_deliveries(
        self, min_count: int = 1, *, token: str | None = None, after: int = 0, timeout_s: float = 10.0
    ) -> list[AcceptedMessage]:
        """Return the accepted messages after a sequence, once there are `min_count` or `timeout_s` has passed."""
        await self.ledger.wait(after, target=token, min_count=min_count, timeout_s=timeout_s)
        return self.ledger.list_after(after, target=token, limit=self.settings.max_records)

    def device(self, token: str) -> DeviceView:
        """Return the notifications and data messages that one device would have shown."""
        return self.ledger.device(token)

    def release(self, token: str | None = None) -> int:
        """Let hanging requests succeed, those of one token or all. Returns how many there were."""
        return self.injector.release(token)

    def reset(self) -> None:
        """Clear messages, faults and counters, reset the connections of hanging requests, and restore the latency.

        Access tokens stay valid, and sequences continue.
        """
        self.injector.reset_all()
        self.injector.resets = 0
        self.plan.reset()
        self.ledger.reset()
        self.send_endpoint.reset()
        self.token_endpoint.calls = 0
        self.set_latency(self.settings.latency_ms)

    def stats(self) -> FakeFcmStats:
        """Return the counters."""
        effects = self.ledger.effects
        return FakeFcmStats(
            requests=self.send_endpoint.requests,
            accepted=self.ledger.accepted,
            kept=self.ledger.kept,
            last_sequence=self.ledger.last_sequence,
            statuses=dict(self.send_endpoint.statuses),
            shown=effects[Effect.SHOWN],
            replaced=effects[Effect.REPLACED],
            data=effects[Effect.DATA],
            repeated_data=self.ledger.repeated_data,
            faults={kind.value: count for kind, count in self.plan.applied.items()},
            resets=self.injector.resets,
            hanging=self.injector.hanging,
            token_calls=self.token_endpoint.calls,
            connections=len(self.connections),
        )
