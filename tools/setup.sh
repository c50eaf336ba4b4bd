#!/bin/sh
# Makes .venv: the pinned packages, each checked against its hash, then this package itself, without letting the build
# fetch anything. Says nothing and costs nothing when that is done already.
set -eu
cd "$(dirname "$0")/.."
here=$(pwd -P)
venv=$here/.venv
stamp=$venv/.syncbeat-setup

# Done means: these pins and this packaging, in this folder (a virtual environment does not survive a move).
key=$(cat pyproject.toml requirements/dev.txt tools/setup.sh | cksum)
key="$key $here"
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then
  exit 0
fi

python=$(sh tools/preflight.sh)

# Without a home to write to there is no cache, and nothing to warn about.
if [ ! -w "${HOME:-/nonexistent}" ]; then
  PIP_NO_CACHE_DIR=1
  export PIP_NO_CACHE_DIR
fi
PIP_DISABLE_PIP_VERSION_CHECK=1
export PIP_DISABLE_PIP_VERSION_CHECK
unset PIP_USER PIP_TARGET PIP_PREFIX PYTHONHOME PYTHONPATH 2>/dev/null || true

# One that was moved (its commands name the old place), half made or lost its interpreter is made anew.
if ! grep -qsF "$venv/bin/python" "$venv/bin/pip" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  echo "setup: a virtual environment in .venv, by $python ($("$python" -V 2>&1))"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi
echo "setup: the packages of requirements/dev.txt (the first time takes a minute)"
# pip asks again when it cannot connect, but not when a download breaks off.
tries=3
until "$venv/bin/python" -m pip install --quiet --require-hashes --requirement requirements/dev.txt; do
  tries=$((tries - 1))
  if [ "$tries" -eq 0 ]; then
    echo "setup: the packages could not be installed (see above). They come from the index pip is configured for;" >&2
    echo "setup: 'pip config list' shows it. Behind a proxy set HTTPS_PROXY and, for its certificate, PIP_CERT." >&2
    exit 1
  fi
  echo "setup: that failed (see above); once more in 5 s" >&2
  sleep 5
done
"$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
echo "$key" >"$stamp"
