"""SQL of authentication."""
