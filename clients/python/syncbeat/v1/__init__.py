"""The contract, generated from clients/protos by protos/gen.sh: never edited."""
