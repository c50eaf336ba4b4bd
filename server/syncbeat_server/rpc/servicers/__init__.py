"""One file a service of the contract: convert, call, convert."""
