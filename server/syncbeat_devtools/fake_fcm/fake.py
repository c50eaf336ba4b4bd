"""The fake itself, without its sockets: what tests script and read."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

import orjson

from syncbeat_devtools.fake_fcm.endpoints.oauth import Issuer
from syncbeat_devtools.fake_fcm.endpoints.send import Sending
from syncbeat_devtools.fake_fcm.faults.injector import Stage
from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultPlan
from syncbeat_devtools.fake_fcm.ledger import Accepted, DeviceView, Effect, Ledger
from syncbeat_devtools.fake_fcm.settings import FakeFcmSettings


@dataclass(frozen=True)
class FakeFcmStats:
    """Counters since the start or the last reset; they are never lost to the ledger's bound.

    Attributes:
        requests: sends received, whatever became of them.
        accepted: messages accepted.
        kept: accepted messages that the ledger still holds.
        last_sequence: sequence of the newest accepted message.
        statuses: sends answered, by HTTP status.
        shown: notifications that came up on devices.
        replaced: notifications that took the place of one with the same tag.
        data: data-only messages.
        repeated_data: those of them whose `delivery_id` the device had already.
        faults: faults applied, by kind.
        resets: connections broken by faults.
        hanging: requests that hang now.
        token_calls: calls of the token endpoint.
        connections: TCP connections open now.
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
    """A running fake. Made by `running_fake_fcm`; to be used in the thread of its event loop.

    Attributes:
        settings: what it was started with.
        base_url: where it listens, without a slash at the end.
        ca_file: the CA certificate to trust, when it speaks TLS.
        service_account: the JSON of a service account whose token_uri is this fake.
    """

    def __init__(self, settings: FakeFcmSettings, issuer: Issuer) -> None:
        self.settings = settings
        self.issuer = issuer
        self.ledger = Ledger(settings.max_records)
        self.plan = FaultPlan()
        self.stage = Stage(settings.project_id)
        self.sending = Sending(settings, issuer, self.plan, self.ledger, self.stage)
        self.base_url = ""
        self.ca_file: Path | None = None
        self.connections: set[asyncio.Transport] = set()

    @property
    def service_account(self) -> dict[str, str]:
        """The JSON of the service account."""
        return self.issuer.service_account(f"{self.base_url}/token")

    def write_service_account(self, path: Path | str) -> None:
        """Write the service account's JSON for the owner alone (mode 0600)."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(orjson.dumps(self.service_account, option=orjson.OPT_INDENT_2))

    def script(self, target: str, fault: Fault, *, share: float = 1.0, seed: int = 0) -> None:
        """Let a fault happen to sends for `target`: a registration token, `*` for all, `/token` for OAuth.

        Raises:
            ValueError: as `FaultPlan.script`.
        """
        self.plan.script(target, fault, share=share, seed=seed)

    def clear_faults(self, target: str | None = None) -> None:
        """Drop the scripted faults of one target, or all."""
        self.plan.clear(target)

    def set_latency(self, latency_ms: int) -> None:
        """Hold back every further answer to a send by so many milliseconds.

        Raises:
            ValueError: it is negative.
        """
        if latency_ms < 0:
            raise ValueError("latency_ms must not be negative")
        self.sending.latency_s = latency_ms / 1000

    def deliveries(self, *, token: str | None = None, after: int = 0, limit: int = 1000) -> list[Accepted]:
        """Accepted messages after a sequence, oldest first."""
        return self.ledger.after(after, target=token, limit=limit)

    async def wait_for_deliveries(
        self, min_count: int = 1, *, token: str | None = None, after: int = 0, timeout_s: float = 10.0
    ) -> list[Accepted]:
        """The accepted messages after a sequence, once there are `min_count` or `timeout_s` has passed."""
        await self.ledger.wait(after, target=token, min_count=min_count, timeout_s=timeout_s)
        return self.ledger.after(after, target=token, limit=self.settings.max_records)

    def device(self, token: str) -> DeviceView:
        """What one device would have shown."""
        return self.ledger.device(token)

    def release(self, token: str | None = None) -> int:
        """Let hanging requests succeed, those of one token or all. Returns how many there were."""
        return self.stage.release(token)

    def reset(self) -> None:
        """Forget messages, faults and counters, break hanging requests, and put the latency back.

        Access tokens stay good, and sequences go on.
        """
        self.stage.abandon()
        self.stage.resets = 0
        self.plan.reset()
        self.ledger.reset()
        self.sending.reset()
        self.issuer.calls = 0
        self.set_latency(self.settings.latency_ms)

    def stats(self) -> FakeFcmStats:
        """The counters."""
        effects = self.ledger.effects
        return FakeFcmStats(
            requests=self.sending.requests,
            accepted=self.ledger.accepted,
            kept=self.ledger.kept,
            last_sequence=self.ledger.last_sequence,
            statuses=dict(self.sending.statuses),
            shown=effects[Effect.SHOWN],
            replaced=effects[Effect.REPLACED],
            data=effects[Effect.DATA],
            repeated_data=self.ledger.repeated_data,
            faults={kind.value: count for kind, count in self.plan.applied.items()},
            resets=self.stage.resets,
            hanging=self.stage.hanging,
            token_calls=self.issuer.calls,
            connections=len(self.connections),
        )
