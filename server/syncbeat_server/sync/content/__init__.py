"""Values of the change feed: merging, spelling, tokens. Pure."""
