"""The only code that drives PostgreSQL and Redis."""
