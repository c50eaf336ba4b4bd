"""Our own sessions: refresh tokens, their rotation and its limits."""
