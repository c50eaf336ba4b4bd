"""The control endpoint, `/control/...`: the methods of `FakeFcm` over HTTP, for clients in any language."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from syncbeat_devtools.fake_fcm.fake import FakeFcm
from syncbeat_devtools.fake_fcm.faults.plan import Fault, FaultKind
from syncbeat_devtools.fake_fcm.ledger import AcceptedMessage
from syncbeat_devtools.fake_fcm.responses import Response, json_response

_DEVICES = "/control/devices/"
_MAX_LIMIT = 10_000
_MAX_WAIT_MS = 60_000
_FAULT_FIELDS = frozenset({"kind", "times", "retry_after_s", "retry_after_as_date", "delay_ms"})
_SCRIPT_FIELDS = _FAULT_FIELDS | {"token", "share", "seed"}


class ControlError(ValueError):
    """An invalid control request; the text says what is wrong with it."""


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


async def control(fake: FakeFcm, method: str, path: str, query: str, body: bytes, origin: str) -> Response:
    """Answer one control request. `origin` is the address by which the client reached the fake."""
    name = path.removeprefix(_DEVICES)
    handler = ROUTES.get((method, path if name == path else f"{_DEVICES}{{token}}"))
    if handler is None:
        return json_response({"error": f"fake-fcm: no {method} {path}"}, 404)
    try:
        return await handler(fake, _Request(unquote(name), parse_qs(query), body, origin))
    except ValueError as error:
        return json_response({"error": str(error)}, 400)


async def _deliveries(fake: FakeFcm, request: _Request) -> Response:
    arguments, token = request.query, request.token
    after = _number(arguments, "after", 0)
    limit = _number(arguments, "limit", 1000, _MAX_LIMIT)
    wait_ms = _number(arguments, "wait_ms", 0, _MAX_WAIT_MS)
    if wait_ms:
        min_count = _number(arguments, "min_count", 1)
        await fake.ledger.wait(after, target=token, min_count=min_count, timeout_s=wait_ms / 1000)
    found = fake.deliveries(token=token, after=after, limit=limit)
    return json_response(
        {
            "deliveries": [_delivery(record) for record in found],
            "last_sequence": fake.ledger.last_sequence,
        }
    )


async def _device(fake: FakeFcm, request: _Request) -> Response:
    device = fake.device(request.name)
    return json_response(
        {
            "token": device.token,
            "shown": device.shown,
            "replaced": device.replaced,
            "on_screen": [_delivery(record) for record in device.on_screen],
            "data_messages": [_delivery(record) | {"data": _data(record.message)} for record in device.data_messages],
            "data_by_delivery_id": device.data_by_delivery_id,
        }
    )


async def _service_account(fake: FakeFcm, request: _Request) -> Response:
    return json_response(fake.token_endpoint.service_account(f"{request.origin}/token"))


async def _stats(fake: FakeFcm, _request: _Request) -> Response:
    return json_response(fake.stats())


async def _script(fake: FakeFcm, request: _Request) -> Response:
    arguments = orjson.loads(request.body)
    faults = arguments if isinstance(arguments, list) else [arguments]
    # All are parsed before the first is scripted, so that a bad one leaves nothing behind.
    for target, fault, share, seed in [_parse_fault(fault) for fault in faults]:
        fake.script(target, fault, share=share, seed=seed)
    return json_response({"scripted": len(faults)})


def _parse_fault(arguments: Any) -> tuple[str, Fault, float, int]:
    if not isinstance(arguments, dict) or not _SCRIPT_FIELDS.issuperset(arguments):
        raise ControlError(f"a fault is an object with {', '.join(sorted(_SCRIPT_FIELDS))}")
    token, kind = arguments.get("token"), arguments.get("kind")
    if not isinstance(token, str) or not token:
        raise ControlError("token must be a registration token, * or /token")
    if not isinstance(kind, str):
        raise ControlError("kind must be a string")
    for name in ("times", "retry_after_s", "delay_ms", "seed"):
        if type(arguments.get(name)) not in (int, type(None)):
            raise ControlError(f"{name} must be a whole number")
    share = arguments.get("share", 1.0)
    if type(share) not in (int, float) or not isinstance(arguments.get("retry_after_as_date", False), bool):
        raise ControlError("share must be a number and retry_after_as_date a boolean")
    fault = Fault(
        FaultKind(kind),
        times=arguments.get("times", 1),
        retry_after_s=arguments.get("retry_after_s"),
        retry_after_as_date=arguments.get("retry_after_as_date", False),
        delay_ms=arguments.get("delay_ms") or 0,
    )
    return token, fault, float(share), arguments.get("seed") or 0


async def _clear_faults(fake: FakeFcm, request: _Request) -> Response:
    fake.clear_faults(request.token)
    return json_response({})


async def _set_latency(fake: FakeFcm, request: _Request) -> Response:
    arguments = orjson.loads(request.body)
    latency_ms = arguments.get("latency_ms") if isinstance(arguments, dict) else None
    if type(latency_ms) is not int:
        raise ControlError("latency_ms must be a whole number")
    fake.set_latency(latency_ms)
    return json_response({"latency_ms": latency_ms})


async def _release(fake: FakeFcm, request: _Request) -> Response:
    return json_response({"released": fake.release(request.token)})


async def _reset(fake: FakeFcm, _request: _Request) -> Response:
    fake.reset()
    return json_response({})


ROUTES: dict[tuple[str, str], Callable[[FakeFcm, _Request], Awaitable[Response]]] = {
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


def _delivery(record: AcceptedMessage) -> dict[str, object]:
    return {
        "sequence": record.sequence,
        "time": record.accepted_at,
        "target_kind": record.content.target_kind,
        "target": record.target,
        "effect": record.effect,
        "message": record.message,
    }


def _data(message: dict[str, Any]) -> dict[str, str]:
    """Return the data that an Android device receives: its own block, if present, replaces the common one."""
    data: dict[str, str] = (message.get("android") or {}).get("data") or message.get("data") or {}
    return data


def _number(arguments: dict[str, list[str]], name: str, default: int, most: int | None = None) -> int:
    text = arguments.get(name, [str(default)])[0]
    if not text.isascii() or not text.isdigit():
        raise ControlError(f"{name} must be a whole number, not negative")
    number = int(text)
    return number if most is None else min(number, most)
