"""Reads the options of the contract, which the generated code does not have, from its descriptor set."""
