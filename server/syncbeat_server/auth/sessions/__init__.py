"""Our own sessions: creation, refresh with token rotation, revocation, and the rate limit of refreshes."""
