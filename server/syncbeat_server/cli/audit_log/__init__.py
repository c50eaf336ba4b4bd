"""Subcommand `audit`, and who runs a command that the audit log tells of."""
