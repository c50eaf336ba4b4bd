#!/bin/sh
# Generates the PHP client, and checks its syntax where php is there.
set -eu
. "$(dirname "$0")/prepare.sh"
generate PHP
[ -f gen/Syncbeat/V1/SyncServiceClient.php ]
if command -v php >/dev/null 2>&1; then
  find gen -type f -exec php -l {} + >syntax.txt 2>&1 || { cat syntax.txt >&2; exit 1; }
fi
