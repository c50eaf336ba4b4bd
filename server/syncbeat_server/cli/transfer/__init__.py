"""Subcommands that move what apps keep into Syncbeat and out of it."""
