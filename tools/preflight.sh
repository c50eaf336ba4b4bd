#!/bin/sh
# Finds a Python that can build our virtual environment and prints its path. When there is none, says exactly what to
# install. $PYTHON, when set, is the only one tried.
set -eu

say() { echo "preflight: $*" >&2; }

die() {
  say "$1"
  shift
  for line in "$@"; do echo "  $line" >&2; done
  exit 1
}

# The install line for the packages named, for the package manager of this machine. Debian and Ubuntu's names.
with_apt() {
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "install them with your system's package manager (their Debian names: $*)"
  elif [ "$(id -u)" = 0 ]; then
    echo "apt-get update && apt-get install -y --no-install-recommends $*"
  else
    echo "sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
  fi
}

# Answers in one word what this interpreter lacks: nothing (ok), age, another implementation, or a module.
examine() {
  "$1" - 2>/dev/null <<'PY' || echo broken
import sys

def verdict():
    if sys.version_info < (3, 11):
        return "old"
    if sys.implementation.name != "cpython":
        return "implementation"
    for module in ("ssl", "ctypes", "venv", "ensurepip"):
        try:
            __import__(module)
        except ImportError:
            return module
    return "ok"

print(verdict())
PY
}

for tool in cksum cp diff find mktemp rm; do
  command -v "$tool" >/dev/null 2>&1 || die "'$tool' is missing. Fix:" "$(with_apt coreutils diffutils findutils)"
done

# The embedded PostgreSQL and Valkey are published for glibc and macOS only.
for musl in /lib/ld-musl-*; do
  [ -e "$musl" ] && die "this system uses musl (Alpine); the embedded stores need glibc. Fix:" \
    "use a Debian, Ubuntu or Fedora image, for instance debian:bookworm-slim"
done

[ -w . ] || die "$(pwd) is not writable by $(id -un 2>/dev/null || id -u), and everything is made inside it. Fix:" \
  "chown -R $(id -u) '$(pwd)', or clone again as this user"

lacking=""
lacking_path=""
for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
  path=$(command -v "$name" 2>/dev/null) || continue
  found=$(examine "$path")
  if [ "$found" = ok ]; then
    echo "$path"
    exit 0
  fi
  # Of several unusable ones, report the one nearest to usable: new enough, a module short.
  case "$lacking:$found" in
    :* | old:* | broken:*) lacking=$found lacking_path=$path ;;
  esac
done

case "$lacking" in
  "")
    die "no Python found${PYTHON:+ at \$PYTHON=$PYTHON}; 3.11 or newer is needed. Fix:" "$(with_apt python3 python3-venv)"
    ;;
  old)
    die "$lacking_path is $("$lacking_path" -V 2>&1); 3.11 or newer is needed. Fix:" "$(with_apt python3.11 python3.11-venv)" \
      "or name a newer one: make setup PYTHON=/path/to/python3.12"
    ;;
  venv | ensurepip)
    version=$("$lacking_path" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    die "$lacking_path has no '$lacking' module. Fix:" "$(with_apt "python$version-venv")"
    ;;
  *)
    die "$lacking_path cannot be used ($lacking). Fix:" "$(with_apt python3 python3-venv)" \
      "or name another one: make setup PYTHON=/path/to/python3.12"
    ;;
esac
