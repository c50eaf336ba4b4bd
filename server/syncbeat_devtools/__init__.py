"""Tools that ship with the service for trying and testing it."""
