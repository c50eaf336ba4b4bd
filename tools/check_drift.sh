#!/bin/sh
# Fails when what is generated and committed (the clients' protos, stubs and the server's descriptor set from the protos,
# docs/reference/ from the code, Grafana's dashboards from their table) is not what comes of generating it now: generates it anew beside it and compares.
set -eu
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
sh protos/gen.sh generate "$fresh"
for made in clients/protos/syncbeat clients/python/syncbeat/v1 server/syncbeat_server/rpc/contract/contract.binpb; do
  if ! diff -r -q -x __pycache__ "$fresh/$made" "$made"; then
    echo "check_drift: the generated code is stale. Fix: make gen" >&2
    exit 1
  fi
done
.venv/bin/python -m tools.gen_docs "$fresh/reference"
if ! diff -r -q "$fresh/reference" docs/reference; then
  echo "check_drift: docs/reference is stale. Fix: make gen" >&2
  exit 1
fi
.venv/bin/python -m tools.gen_dashboards "$fresh/dashboards"
if ! diff -r -q "$fresh/dashboards" deploy/grafana/dashboards; then
  echo "check_drift: deploy/grafana/dashboards is stale. Fix: make gen" >&2
  exit 1
fi
