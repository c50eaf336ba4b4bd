#!/bin/sh
# Generates the Ruby client, and checks its syntax where ruby is there.
set -eu
. "$(dirname "$0")/prepare.sh"
generate Ruby
[ -f gen/syncbeat/v1/sync_service_services_pb.rb ]
if command -v ruby >/dev/null 2>&1; then
  find gen -type f -exec ruby -c {} + >syntax.txt 2>&1 || { cat syntax.txt >&2; exit 1; }
fi
