"""PublishChanges of one change, each with its own request_id, over 100 scopes, against a bare echo of its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from bench import raw_load
from bench.figure import Better, Figure, Options, Round, measure_pairs
from bench.processes import RunningProcess
from bench.stage import PUBLISH, SERVICE_TOKEN, call, echo_server, measure_load, migrated_stores, our_server
from syncbeat.v1 import core_pb2, sync_service_pb2

_SCOPES = 100
_CALLS_A_SECOND = 800  # this rate makes a round about as long as requested


def measure(options: Options) -> Figure:
    """Measure requests per second, each committed before its answer; the temporary cluster does not sync to disk."""
    numbers = count()
    with migrated_stores() as stores, our_server(stores) as ours:
        answer = call(ours.address, PUBLISH, _request(next(numbers)), SERVICE_TOKEN)
        assert sync_service_pb2.PublishChangesResponse.FromString(answer).results[0].sequence == 1

        def calls() -> list[tuple[str, bytes]]:
            made = round(options.seconds * _CALLS_A_SECOND)
            return [(SERVICE_TOKEN, _request(next(numbers))) for _ in range(made)]

        with echo_server(len(answer)) as echo:
            return measure_pairs(
                "publish_vs_echo",
                "requests/s",
                Better.MORE,
                options,
                lambda: _load(ours, stores.pids[0], calls()),
                lambda: _load(echo, None, calls()),
                h2load=False,
                generator="own, in Python: each call is another",
                request_bytes=len(_request(0)),
                answer_bytes=len(answer),
                scopes=_SCOPES,
                fsync=False,
            )


def _request(number: int, request_id: str | None = None) -> bytes:
    change = core_pb2.NewChange(
        scope=f"room-{number % _SCOPES:03}", key="state", merge_patch_json=f'{{"page":{number},"by":"bench"}}'
    )
    own = f"request-{number:08}" if request_id is None else request_id
    return sync_service_pb2.PublishChangesRequest(request_id=own, changes=[change]).SerializeToString()


def _load(server: RunningProcess, database: int | None, calls: Sequence[tuple[str, bytes]]) -> Round:
    warm_up = SERVICE_TOKEN, _request(0, request_id="")
    return measure_load(server, database, lambda: raw_load.run(server.address, PUBLISH, warm_up, calls))
