"""CPU of GetHint with 100,000 devices that ask in rotation against 1,000, on one server process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from bench import raw_load
from bench.figure import Better, Figure, Options, Round, measure_pairs, report_progress
from bench.hint_rows_cpu import fill
from bench.stage import GET_HINT, measure_load, migrated_stores, our_server, user_token
from syncbeat.v1 import sync_service_pb2

_FEW, _MANY = 1_000, 100_000
_FEW_CALLS = 20_000
_MOST_ROUNDS = 3
_REQUEST = sync_service_pb2.GetHintRequest(device_id="phone").SerializeToString()


def measure(options: Options) -> Figure:
    """Measure microseconds of CPU a call, of the server and PostgreSQL together, once all have asked before."""
    with migrated_stores() as stores:
        report_progress(f"hint_devices_ratio: fill in {_MANY:,} devices")
        asyncio.run(fill(stores, _MANY))
        tokens = [user_token(f"user-{number}") for number in range(1, _MANY + 1)]
        with our_server(stores) as server:

            def load(devices: Sequence[str], calls: int) -> Round:
                made = [(token, _REQUEST) for token in devices] * (calls // len(devices))
                done = measure_load(
                    server, stores.pids[0], lambda: raw_load.run(server.address, GET_HINT, made[0], made)
                )
                return replace(done, value=(done.server_cpu_us or 0.0) + (done.database_cpu_us or 0.0))

            load(tokens, _MANY)
            return measure_pairs(
                "hint_devices_ratio",
                "us of CPU",
                Better.LESS,
                replace(options, rounds=min(options.rounds, _MOST_ROUNDS)),
                lambda: load(tokens, _MANY),
                lambda: load(tokens[:_FEW], _FEW_CALLS),
                devices=_MANY,
                baseline_is=f"the same of {_FEW:,} devices",
            )
