"""Authentication: verified tokens, cached account status, and sessions with refresh-token rotation."""
