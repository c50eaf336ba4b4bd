"""The contract, generated from protos/syncbeat/v1 by protos/gen.sh: never edited."""
