#!/bin/sh
# The contract's commands, all offline: generators and linter come from .venv ("make setup" makes it).
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)
PATH=$root/.venv/bin:$PATH
BUF_CACHE_DIR=${BUF_CACHE_DIR:-$root/.venv/.cache/buf}
export PATH BUF_CACHE_DIR
baseline=protos/baseline.binpb

usage() {
  echo "usage: sh protos/gen.sh generate [outdir]   write <outdir>/syncbeat/v1 (outdir: clients/python)" >&2
  echo "       sh protos/gen.sh lint                buf lint, and buf format without writing" >&2
  echo "       sh protos/gen.sh breaking            compare the protos with $baseline" >&2
  echo "       sh protos/gen.sh baseline            make the protos the new $baseline" >&2
  exit 2
}

generate() {
  target=$1/syncbeat/v1
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  buf generate --output "$fresh"
  # The stub generator writes one for every proto; only those with a service have something to be a stub of.
  for stub in "$fresh"/syncbeat/v1/*_grpc.pyi; do
    [ -f "${stub%i}" ] || rm "$stub"
  done
  echo '"""The contract, generated from protos/syncbeat/v1 by protos/gen.sh: never edited."""' \
    >"$fresh/syncbeat/v1/__init__.py"
  mkdir -p "$target"
  cp -R "$fresh/syncbeat/v1/." "$target"
  for file in "$target"/*; do # whatever no proto generates any more
    [ -e "$fresh/syncbeat/v1/${file##*/}" ] || rm -r "$file"
  done
}

lint() {
  buf lint
  if ! buf format --diff --exit-code; then
    echo "gen.sh: the protos are not formatted (see above). Fix: make fmt" >&2
    exit 1
  fi
}

breaking() {
  if [ ! -f "$baseline" ]; then
    echo "gen.sh: there is no $baseline to compare with. Fix: git checkout -- $baseline" >&2
    exit 1
  fi
  if ! buf breaking --against "$baseline"; then
    echo "gen.sh: clients built on $baseline break by these changes. Mend the protos: add a field, an RPC or a" >&2
    echo "gen.sh: version beside what is there. If nothing released has it yet: sh protos/gen.sh baseline" >&2
    exit 1
  fi
}

[ -x .venv/bin/buf ] || { echo "gen.sh: there is no .venv/bin/buf. Fix: make setup" >&2; exit 1; }
case ${1:-} in
  generate) generate "${2:-clients/python}" ;;
  lint) lint ;;
  breaking) breaking ;;
  baseline) buf build --exclude-source-info --output "$baseline" ;;
  *) usage ;;
esac
