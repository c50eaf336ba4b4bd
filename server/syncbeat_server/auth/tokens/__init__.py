"""Whether a token is genuine: keys, signatures and claims."""
