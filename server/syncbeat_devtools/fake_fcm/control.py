"""The control endpoint, `/control/...`: what the Python methods do, for any language."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from syncbeat_devtools.fake_fcm.answers import Answer, as_json
from syncbeat_devtools.fake_fcm.fake import FakeFcm
from syncbeat_devtools.fake_fcm.faults import Fault, FaultKind
from syncbeat_devtools.fake_fcm.ledger import Accepted

_DEVICES = "/control/devices/"
_MAX_LIMIT = 10_000
_MAX_WAIT_MS = 60_000
_FAULT_FIELDS = frozenset({"kind", "times", "retry_after_s", "retry_after_as_date", "delay_ms"})
_SCRIPT_FIELDS = _FAULT_FIELDS | {"token", "share", "seed"}


class BadControl(ValueError):
    """A control request that makes no sense; the text says why."""


@dataclass(frozen=True)
class _Request:
    """A control request: the last part of its path, its query and body, and where the client reached the fake."""

    name: str
    query: dict[str, list[str]]
    body: bytes
    origin: str

    @property
    def token(self) -> str | None:
        """The registration token that the query names, if any."""
        return next(iter(self.query.get("token", ())), None)


async def control(fake: FakeFcm, method: str, path: str, query: str, body: bytes, origin: str) -> Answer:
    """Answer one control request. `origin` is where the client reached the fake."""
    name = path.removeprefix(_DEVICES)
    handler = ROUTES.get((method, path if name == path else f"{_DEVICES}{{token}}"))
    if handler is None:
        return as_json({"error": f"fake-fcm: no {method} {path}"}, 404)
    try:
        return await handler(fake, _Request(unquote(name), parse_qs(query), body, origin))
    except ValueError as error:
        return as_json({"error": str(error)}, 400)


async def _deliveries(fake: FakeFcm, request: _Request) -> Answer:
    asked, token = request.query, request.token
    after = _number(asked, "after", 0)
    limit = _number(asked, "limit", 1000, _MAX_LIMIT)
    wait_ms = _number(asked, "wait_ms", 0, _MAX_WAIT_MS)
    if wait_ms:
        min_count = _number(asked, "min_count", 1)
        await fake.ledger.wait(after, target=token, min_count=min_count, timeout_s=wait_ms / 1000)
    found = fake.deliveries(token=token, after=after, limit=limit)
    return as_json(
        {
            "deliveries": [_delivery(record) for record in found],
            "last_sequence": fake.ledger.last_sequence,
        }
    )


async def _device(fake: FakeFcm, request: _Request) -> Answer:
    device = fake.device(request.name)
    return as_json(
        {
            "token": device.token,
            "shown": device.shown,
            "replaced": device.replaced,
            "on_screen": [_delivery(record) for record in device.on_screen],
            "data_messages": [_delivery(record) | {"data": _data(record.message)} for record in device.data_messages],
            "data_by_delivery_id": device.data_by_delivery_id,
        }
    )


async def _service_account(fake: FakeFcm, request: _Request) -> Answer:
    return as_json(fake.issuer.service_account(f"{request.origin}/token"))


async def _stats(fake: FakeFcm, _request: _Request) -> Answer:
    return as_json(fake.stats())


async def _script(fake: FakeFcm, request: _Request) -> Answer:
    asked = orjson.loads(request.body)
    faults = asked if isinstance(asked, list) else [asked]
    # All are read before the first is scripted, so that a bad one leaves nothing behind.
    for arguments in [_read_fault(fault) for fault in faults]:
        fake.script(arguments[0], arguments[1], share=arguments[2], seed=arguments[3])
    return as_json({"scripted": len(faults)})


def _read_fault(asked: Any) -> tuple[str, Fault, float, int]:
    if not isinstance(asked, dict) or not _SCRIPT_FIELDS.issuperset(asked):
        raise BadControl(f"a fault is an object with {', '.join(sorted(_SCRIPT_FIELDS))}")
    token, kind = asked.get("token"), asked.get("kind")
    if not isinstance(token, str) or not token:
        raise BadControl("token must be a registration token, * or /token")
    if not isinstance(kind, str):
        raise BadControl("kind must be a string")
    for name in ("times", "retry_after_s", "delay_ms", "seed"):
        if type(asked.get(name)) not in (int, type(None)):
            raise BadControl(f"{name} must be a whole number")
    share = asked.get("share", 1.0)
    if type(share) not in (int, float) or not isinstance(asked.get("retry_after_as_date", False), bool):
        raise BadControl("share must be a number and retry_after_as_date a boolean")
    fault = Fault(
        FaultKind(kind),
        times=asked.get("times", 1),
        retry_after_s=asked.get("retry_after_s"),
        retry_after_as_date=asked.get("retry_after_as_date", False),
        delay_ms=asked.get("delay_ms") or 0,
    )
    return token, fault, float(share), asked.get("seed") or 0


async def _clear_faults(fake: FakeFcm, request: _Request) -> Answer:
    fake.clear_faults(request.token)
    return as_json({})


async def _set_latency(fake: FakeFcm, request: _Request) -> Answer:
    asked = orjson.loads(request.body)
    latency_ms = asked.get("latency_ms") if isinstance(asked, dict) else None
    if type(latency_ms) is not int:
        raise BadControl("latency_ms must be a whole number")
    fake.set_latency(latency_ms)
    return as_json({"latency_ms": latency_ms})


async def _release(fake: FakeFcm, request: _Request) -> Answer:
    return as_json({"released": fake.release(request.token)})


async def _reset(fake: FakeFcm, _request: _Request) -> Answer:
    fake.reset()
    return as_json({})


ROUTES: dict[tuple[str, str], Callable[[FakeFcm, _Request], Awaitable[Answer]]] = {
    ("GET", "/control/deliveries"): _deliveries,
    ("GET", f"{_DEVICES}{{token}}"): _device,
    ("GET", "/control/service-account"): _service_account,
    ("GET", "/control/stats"): _stats,
    ("POST", "/control/faults"): _script,
    ("DELETE", "/control/faults"): _clear_faults,
    ("POST", "/control/latency"): _set_latency,
    ("POST", "/control/release"): _release,
    ("POST", "/control/reset"): _reset,
}
"""By method and path. docs/fake-fcm.md describes each."""


def _delivery(record: Accepted) -> dict[str, object]:
    return {
        "sequence": record.sequence,
        "time": record.accepted_at,
        "target_kind": record.content.target_kind,
        "target": record.target,
        "effect": record.effect,
        "message": record.message,
    }


def _data(message: dict[str, Any]) -> dict[str, str]:
    """The data an Android device gets: its own block, when there is one, replaces the common one."""
    data: dict[str, str] = (message.get("android") or {}).get("data") or message.get("data") or {}
    return data


def _number(asked: dict[str, list[str]], name: str, default: int, most: int | None = None) -> int:
    text = asked.get(name, [str(default)])[0]
    if not text.isascii() or not text.isdigit():
        raise BadControl(f"{name} must be a whole number, not negative")
    number = int(text)
    return number if most is None else min(number, most)
