"""Serves the contract over gRPC: the only code that knows gRPC and protobuf."""
