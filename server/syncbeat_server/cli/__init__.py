"""The command `syncbeat-server`: one module for each of its larger subcommands."""
