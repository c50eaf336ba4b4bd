"""`python -m bench`: prints one line of JSON for each figure; progress goes to stderr.

`--only peers` stands for the figures of other programs beside ours (`bench/peers`), which are measured when asked for.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable

from bench import (
    against,
    auth,
    event_ingest_vs_insert,
    fanout,
    firehose,
    hint_cold_vs_echo,
    hint_rows_cpu,
    hint_vs_echo,
    limit_us,
    policy_us,
    publish_vs_echo,
    push_accept_per_s,
    push_claims,
    push_vs_firebase_admin,
    start_s,
    stream_rss_kb,
    stream_storm,
    trace_off_us,
)
from bench.figure import Figure, Options
from bench.peers import figures as peers
from bench.peers.tools import PeerAbsent

FIGURES: dict[str, Callable[[Options], Figure]] = {
    "hint_vs_echo": hint_vs_echo.measure,
    "hint_cold_vs_echo": hint_cold_vs_echo.measure,
    "policy_us": policy_us.measure,
    "limit_us": limit_us.measure,
    "trace_off_us": trace_off_us.measure,
    "hint_rows_cpu": hint_rows_cpu.measure,
    "publish_vs_echo": publish_vs_echo.measure,
    "event_ingest_vs_insert": event_ingest_vs_insert.measure,
    "push_cpu_us_vs_firebase_admin": push_vs_firebase_admin.cpu,
    "push_delivered_per_s": push_vs_firebase_admin.rate,
    "push_accept_per_s": push_accept_per_s.accept_rate,
    "push_p95_ms": push_accept_per_s.latency,
    "push_claim_ms": push_claims.claims,
    "retention_per_s": push_claims.retention,
    "fanout_1k_p99_ms": fanout.to_1k,
    "fanout_5k_p99_ms": fanout.to_5k,
    "storm_5k_s": stream_storm.storm,
    "idle_10k_cpu_percent": stream_storm.idle,
    "stream_rss_kb": stream_rss_kb.measure,
    "firehose_cpu_ms": firehose.cpu,
    "firehose_kib": firehose.bytes_received,
    "start_s": start_s.measure,
    "auth_cached_us": auth.cached,
    "auth_hs256_us": auth.hs256,
    "auth_es256_us": auth.es256,
    "auth_interceptor_us": auth.interceptor,
}


def main() -> int:
    """Measure the requested figures, in the order given."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(FIGURES), help="figures, separated by commas (default: all)")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="of each side of a round")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--against", metavar="REV", help="compare with this commit, in rounds of a process of each")
    parser.add_argument("--minutes", type=float, default=against.Plan.minutes, help="of each figure, with --against")
    parser.add_argument("--seed", type=int, help="of the order in rounds, with --against (default: a new one, told)")
    parsed = parser.parse_args()
    known = {**FIGURES, **peers.FIGURES}
    names = [name for one in parsed.only.split(",") for name in (peers.FIGURES if one == "peers" else [one])]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such figure: {', '.join(unknown)}; there are {', '.join(known)}, and peers")
    if parsed.against:
        seed = random.randrange(1 << 31) if parsed.seed is None else parsed.seed
        return against.run(names, parsed.against, against.Plan(seed, parsed.minutes))
    for name in names:
        try:
            line = known[name](Options(parsed.seconds, parsed.rounds)).line()
        except PeerAbsent as absent:
            line = json.dumps({"name": name, "absent": str(absent)})
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
