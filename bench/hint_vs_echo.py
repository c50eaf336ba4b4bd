"""GetHint of one authenticated device against a bare echo of the same bytes."""

from __future__ import annotations

from bench import h2load, raw_load
from bench.figure import Better, Figure, Options, Round, measure_pairs
from bench.processes import RunningProcess
from bench.stage import GET_HINT, add_users, call, echo_server, measure_load, migrated_stores, our_server, user_token
from syncbeat.v1 import core_pb2, sync_service_pb2

_WARM_UP_S = 1.0
_CALLS_A_SECOND = 3_000  # without h2load: this rate makes a round about as long as requested


def measure(options: Options) -> Figure:
    """Measure requests per second of one server process over 16 connections x 4 streams."""
    with migrated_stores() as stores:
        add_users(stores, ["alice"])
        token = user_token("alice")
        request = _request()
        database = stores.pids[0]
        with our_server(stores) as ours:
            answer = call(ours.address, GET_HINT, request, token)
            _check(answer)
            with echo_server(len(answer)) as echo:
                for server in (ours, echo):
                    _load(server, None, request, token, _WARM_UP_S, len(answer))

                figure = measure_pairs(
                    "hint_vs_echo",
                    "requests/s",
                    Better.MORE,
                    options,
                    lambda: _load(ours, database, request, token, options.seconds, len(answer)),
                    lambda: _load(echo, None, request, token, options.seconds, len(answer)),
                    h2load=h2load.is_installed(),
                    generator="h2load" if h2load.is_installed() else "own, in Python: there is no h2load here",
                    request_bytes=len(request),
                    answer_bytes=len(answer),
                )
            _check(call(ours.address, GET_HINT, request, token))
    return figure


def _request() -> bytes:
    cursors = [core_pb2.ScopeCursor(scope=f"scope-alice-{number}", sequence=7) for number in range(3)]
    return sync_service_pb2.GetHintRequest(device_id="phone", cursors=cursors).SerializeToString()


def _check(answer: bytes) -> None:
    hint = sync_service_pb2.GetHintResponse.FromString(answer).hint
    assert len(hint.heads) == 3
    assert hint.poll_interval.seconds >= 5


def _load(
    server: RunningProcess, database: int | None, request: bytes, token: str, seconds: float, answer_bytes: int
) -> Round:
    if not h2load.is_installed():
        calls = [(token, request)] * round(seconds * _CALLS_A_SECOND)
        return measure_load(server, database, lambda: raw_load.run(server.address, GET_HINT, calls[0], calls))
    headers = [("content-type", "application/grpc"), ("te", "trailers"), ("authorization", f"Bearer {token}")]
    url = f"http://{server.address}{GET_HINT}"
    return measure_load(server, database, lambda: h2load.run(url, request, headers, seconds, answer_bytes))
