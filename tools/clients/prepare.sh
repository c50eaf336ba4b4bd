# Read by the scripts beside it, whose argument is an empty folder to work in: there it makes a copy of what clients/README.md
# refers to, and runs the commands of that page.
root=$(cd "$(dirname "$0")/../.." && pwd -P)
tools=${PROOF_TOOLS:-$root/.venv/proof-tools}
work=$1
PATH=$tools/protoc/usr/bin:$tools/grpc-tools/bin:$PATH
LD_LIBRARY_PATH=$(echo "$tools"/protoc/usr/lib/*-linux-gnu)${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PATH LD_LIBRARY_PATH

mkdir -p "$work/clients" "$work/bin" "$work/own"
cp -R "$root/clients/protos" "$work/clients/"
cp "$root/tools/clients/own_options.proto" "$work/own/"
cd "$work"
# For plugins any protoc will do; that of grpcio-tools has no generators of other languages in it.
if ! command -v protoc >/dev/null 2>&1; then
  printf '#!/bin/sh\nexec "%s" -m grpc_tools.protoc "$@"\n' "$root/.venv/bin/python" >bin/protoc
  chmod +x bin/protoc
  PATH=$work/bin:$PATH
fi

generate() { # Run the command of the page under this heading.
  command=$(awk -v heading="## $1" '$0 == heading { found = 1 } found && /^```$/ { exit } found && inside; found && /^```sh$/ { inside = 1 }' \
    "$root/clients/README.md")
  [ -n "$command" ] || { echo "clients/README.md has no command for $1" >&2; exit 1; }
  eval "$command"
}
