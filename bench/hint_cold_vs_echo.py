"""GetHint of 10,000 devices, each once and with a new token, against a bare echo of the same bytes.

In the first round nothing is cached. The others are like a device with a refreshed token: its account status and view
are cached, its token is verified. The figure is the median; the first round's ratio is reported too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from bench import raw_load
from bench.figure import Better, Figure, Options, Round, measure_pairs
from bench.processes import RunningProcess
from bench.stage import (
    GET_HINT,
    SCOPES_EACH,
    add_users,
    call,
    echo_server,
    measure_load,
    migrated_stores,
    our_server,
    user_token,
)
from syncbeat.v1 import sync_service_pb2

_PAIRS = 10_000
_MOST_ROUNDS = 5
_WARM_UP_USER = "warm-up"


def measure(options: Options) -> Figure:
    """Measure requests per second. A round makes every call once, so its duration varies."""
    users = [f"user-{number:05}" for number in range(_PAIRS)]
    request = sync_service_pb2.GetHintRequest(device_id="phone").SerializeToString()
    with migrated_stores() as stores:
        add_users(stores, [*users, _WARM_UP_USER])
        with our_server(stores) as ours:
            answer = call(ours.address, GET_HINT, request, user_token(_WARM_UP_USER))
            _check(answer)
            life = count(3600)

            def fresh() -> list[tuple[str, bytes]]:
                # Another lifetime gives another token of each user.
                seconds = next(life)
                return [(user_token(user_id, seconds), request) for user_id in users]

            with echo_server(len(answer)) as echo:
                figure = measure_pairs(
                    "hint_cold_vs_echo",
                    "requests/s",
                    Better.MORE,
                    replace(options, rounds=min(options.rounds, _MOST_ROUNDS)),
                    lambda: _load(ours, stores.pids[0], fresh()),
                    lambda: _load(echo, None, fresh()),
                    h2load=False,
                    generator="own, in Python: each call is another",
                    request_bytes=len(request),
                    answer_bytes=len(answer),
                    pairs=_PAIRS,
                    kept="no token; from the second round on views, and how users stand",
                )
    ours_first, echo_first = figure.runs[0]
    return replace(figure, notes={**figure.notes, "first_round_ratio": round(ours_first / echo_first, 3)})


def _check(answer: bytes) -> None:
    assert len(sync_service_pb2.GetHintResponse.FromString(answer).hint.heads) == SCOPES_EACH


def _load(server: RunningProcess, database: int | None, calls: Sequence[tuple[str, bytes]]) -> Round:
    warm_up = user_token(_WARM_UP_USER), calls[0][1]
    return measure_load(server, database, lambda: raw_load.run(server.address, GET_HINT, warm_up, calls))
