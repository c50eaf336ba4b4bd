"""Converts between protobuf messages and the features' values, one module for each service of the contract."""
