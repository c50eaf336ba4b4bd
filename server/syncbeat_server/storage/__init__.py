"""Drives PostgreSQL and Redis. No other package imports their drivers."""
