"""Serves the contract, one module for each service: convert the request, call the feature, convert its result."""
