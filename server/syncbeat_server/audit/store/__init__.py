"""SQL of the `audit_entries` table."""
