#!/bin/sh
# The contract's commands, all offline: generators and linter come from .venv ("make setup" makes it).
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)
PATH=$root/.venv/bin:$PATH
BUF_CACHE_DIR=${BUF_CACHE_DIR:-$root/.venv/.cache/buf}
export PATH BUF_CACHE_DIR
baseline=protos/baseline.binpb

contract=server/syncbeat_server/rpc/contract/contract.binpb

usage() {
  echo "usage: sh protos/gen.sh generate [root]   write clients/protos, the Python package and the server's descriptor" >&2
  echo "                                          set below root (this folder)" >&2
  echo "       sh protos/gen.sh lint              buf lint, and buf format without writing" >&2
  echo "       sh protos/gen.sh breaking          compare the clients' protos with $baseline" >&2
  echo "       sh protos/gen.sh baseline          make the clients' protos the new $baseline" >&2
  exit 2
}

# Writes into a fresh folder first, so that a generator that fails leaves everything as it was.
generate() {
  fresh=$(mktemp -d)
  trap 'rm -rf "$fresh"' EXIT
  mkdir -p "$fresh/protos" "$fresh/${contract%/*}" "$fresh/python"
  buf build --as-file-descriptor-set --exclude-source-info --output "$fresh/$contract"
  python tools/client_protos.py protos "$fresh/protos"
  buf format --write "$fresh/protos"
  buf generate "$fresh/protos" --output "$fresh/python"
  # The stub generator writes one for every proto; only those with a service have something to be a stub of.
  for stub in "$fresh"/python/syncbeat/v1/*_grpc.pyi; do
    [ -f "${stub%i}" ] || rm "$stub"
  done
  echo '"""The contract, generated from clients/protos by protos/gen.sh: never edited."""' \
    >"$fresh/python/syncbeat/v1/__init__.py"
  replace "$fresh/protos/syncbeat/v1" "$1/clients/protos/syncbeat/v1"
  replace "$fresh/python/syncbeat/v1" "$1/clients/python/syncbeat/v1"
  mkdir -p "$1/${contract%/*}"
  cp "$fresh/$contract" "$1/$contract"
}

replace() { # The files of the first folder, and no others, in the second.
  mkdir -p "$2"
  cp -R "$1/." "$2"
  for file in "$2"/*; do # whatever no proto generates any more
    [ -e "$1/${file##*/}" ] || rm -r "$file"
  done
}

lint() {
  buf lint
  if ! buf format --diff --exit-code --exclude-path protos/buf; then
    echo "gen.sh: the protos are not formatted (see above). Fix: make fmt" >&2
    exit 1
  fi
}

breaking() {
  if [ ! -f "$baseline" ]; then
    echo "gen.sh: there is no $baseline to compare with. Fix: git checkout -- $baseline" >&2
    exit 1
  fi
  if ! buf breaking clients/protos --against "$baseline"; then
    echo "gen.sh: clients built on $baseline break by these changes. Mend the protos: add a field, an RPC or a" >&2
    echo "gen.sh: version beside what is there. If nothing released has it yet: sh protos/gen.sh baseline" >&2
    exit 1
  fi
}

[ -x .venv/bin/buf ] || { echo "gen.sh: there is no .venv/bin/buf. Fix: make setup" >&2; exit 1; }
case ${1:-} in
  generate) generate "${2:-.}" ;;
  lint) lint ;;
  breaking) breaking ;;
  baseline) buf build clients/protos --exclude-source-info --output "$baseline" ;;
  *) usage ;;
esac
