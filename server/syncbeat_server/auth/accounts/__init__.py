"""Whether a caller may still be let in: standing of users and sessions, and tokens that were checked already."""
