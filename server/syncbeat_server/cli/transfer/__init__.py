"""Subcommands that move data in and out."""
