"""SQL of notifications, deliveries and registration tokens, one file for each family of tables."""
