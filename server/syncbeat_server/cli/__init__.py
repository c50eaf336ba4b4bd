"""The command `syncbeat-server`: one module a subcommand. Large imports wait until a subcommand needs them."""
