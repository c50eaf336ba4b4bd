"""SQL of the status feature."""
