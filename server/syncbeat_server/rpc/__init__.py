"""The wire: the only code that knows gRPC and protobuf."""
