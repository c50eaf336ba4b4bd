# Sourced by scripts of this folder: packages of Debian, fetched without root and not installed. Debian takes superseded
# versions away, so none is pinned: apt checks what it fetches against the signed lists. `$tools` is a folder to work in.

# Offline, nobody is to wait long for this.
patience="-o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 -o Acquire::Retries=1"

has_apt() {
  command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1
}

# apt with its own lists where the system's are empty or old; whoever runs this need not be root.
private_apt() {
  mkdir -p "$tools/apt/lists/partial" "$tools/apt/cache/archives/partial"
  "$@" $patience -o APT::Sandbox::User= -o Debug::NoLocking=true -o Dir::Cache="$tools/apt/cache" -o Dir::State::Lists="$tools/apt/lists"
}

download() { # A package, into the folder that one is in.
  apt-get -qq $patience -o APT::Sandbox::User= download "$1" 2>/dev/null && return
  [ -n "$(ls "$tools/apt/lists" 2>/dev/null | grep -v partial)" ] || private_apt apt-get -qq update || return 1
  private_apt apt-get -qq download "$1"
}
