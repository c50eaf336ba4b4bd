#!/bin/sh
# Makes .venv/prometheus-tools/bin: promtool and Prometheus of this Debian, unpacked and not installed, without root. Takes
# ten seconds once, 20 MB to fetch and 95 MB to keep. Where they cannot be had, prometheus.missing in that folder has the
# reason, which tests skip with; it is asked again an hour later.
set -eu
cd "$(dirname "$0")/.."
tools=$(pwd -P)/.venv/prometheus-tools
. tools/apt_download.sh
key="$(cat tools/prometheus_tools.sh tools/apt_download.sh | cksum) $tools"
mkdir -p "$tools"

made() {
  [ "$(cat "$tools/prometheus.made" 2>/dev/null)" = "$key" ] ||
    [ -n "$(find "$tools/prometheus.missing" -mmin -60 2>/dev/null)" ]
}

missing() {
  echo "$1" >"$tools/prometheus.missing"
  echo "prometheus-tools: $1" >&2
}

make_prometheus() {
  rm -rf "$tools/unpacked" "$tools/bin" "$tools/prometheus.made"
  mkdir -p "$tools/unpacked" "$tools/bin"
  (cd "$tools/unpacked" && download prometheus && dpkg-deb --extract prometheus_*.deb .) || return 1
  for program in promtool prometheus; do
    mv "$tools/unpacked/usr/bin/$program" "$tools/bin/" && "$tools/bin/$program" --version >/dev/null 2>&1 || return 1
  done
  rm -rf "$tools/unpacked" "$tools/apt"
}

made && exit 0
if ! has_apt; then
  missing "this system has no apt to fetch Prometheus with"
  exit 0
fi
# Tests run in two processes, of which one makes it and the other waits.
exec 9>"$tools/lock"
flock 9
made && exit 0
echo "prometheus-tools: Prometheus (from apt, unpacked and not installed)" >&2
if make_prometheus; then
  rm -f "$tools/prometheus.missing"
  echo "$key" >"$tools/prometheus.made"
else
  missing "apt cannot fetch Prometheus here, or it does not run"
fi
