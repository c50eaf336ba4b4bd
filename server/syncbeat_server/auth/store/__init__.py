"""SQL of users and sessions."""
