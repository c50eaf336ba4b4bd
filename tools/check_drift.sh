#!/bin/sh
# Fails when the committed generated code is not what the protos generate: generates it anew beside it and compares.
set -eu
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
sh protos/gen.sh generate "$fresh"
if ! diff -r -q -x __pycache__ "$fresh/syncbeat/v1" clients/python/syncbeat/v1; then
  echo "check_drift: the generated code is stale. Fix: make gen" >&2
  exit 1
fi
