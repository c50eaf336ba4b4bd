"""The control endpoint, `/control/...`: what the Python methods do, for any language."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from syncbeat_devtools.fake_fcm.fake import FakeFcm
from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultKind
from syncbeat_devtools.fake_fcm.ledger import Accepted
from syncbeat_devtools.fake_fcm.responses import Answer, as_json

_MAX_LIMIT = 10_000
_MAX_WAIT_MS = 60_000
_FAULT_FIELDS = frozenset({"kind", "times", "retry_after_s", "retry_after_as_date", "delay_ms"})
_SCRIPT_FIELDS = _FAULT_FIELDS | {"token", "share", "seed"}


class BadControl(ValueError):
    """A control request that makes no sense; the text says why."""


async def control(fake: FakeFcm, method: str, path: str, query: str, body: bytes, origin: str) -> Answer:
    """Answer one control request. `origin` is where the client reached the fake."""
    try:
        if (method, path) == ("GET", "/control/deliveries"):
            return await _deliveries(fake, query)
        if method == "GET" and path.startswith("/control/devices/"):
            return _device(fake, unquote(path.removeprefix("/control/devices/")))
        if (method, path) == ("GET", "/control/service-account"):
            return as_json(fake.issuer.service_account(f"{origin}/token"))
        handler = _HANDLERS.get((method, path))
        if handler is None:
            return as_json({"error": f"fake-fcm: no {method} {path}"}, 404)
        return handler(fake, query, body)
    except ValueError as error:
        return as_json({"error": str(error)}, 400)


async def _deliveries(fake: FakeFcm, query: str) -> Answer:
    asked = parse_qs(query)
    token = asked.get("token", [None])[0]
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


def _device(fake: FakeFcm, token: str) -> Answer:
    device = fake.device(token)
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


def _stats(fake: FakeFcm, _query: str, _body: bytes) -> Answer:
    return as_json(fake.stats())


def _script(fake: FakeFcm, _query: str, body: bytes) -> Answer:
    asked = orjson.loads(body)
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


def _clear_faults(fake: FakeFcm, query: str, _body: bytes) -> Answer:
    fake.clear_faults(parse_qs(query).get("token", [None])[0])
    return as_json({})


def _set_latency(fake: FakeFcm, _query: str, body: bytes) -> Answer:
    asked = orjson.loads(body)
    latency_ms = asked.get("latency_ms") if isinstance(asked, dict) else None
    if type(latency_ms) is not int:
        raise BadControl("latency_ms must be a whole number")
    fake.set_latency(latency_ms)
    return as_json({"latency_ms": latency_ms})


def _release(fake: FakeFcm, query: str, _body: bytes) -> Answer:
    return as_json({"released": fake.release(parse_qs(query).get("token", [None])[0])})


def _reset(fake: FakeFcm, _query: str, _body: bytes) -> Answer:
    fake.reset()
    return as_json({})


_HANDLERS: dict[tuple[str, str], Callable[[FakeFcm, str, bytes], Answer]] = {
    ("GET", "/control/stats"): _stats,
    ("POST", "/control/faults"): _script,
    ("DELETE", "/control/faults"): _clear_faults,
    ("POST", "/control/latency"): _set_latency,
    ("POST", "/control/release"): _release,
    ("POST", "/control/reset"): _reset,
}


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
