"""SQL of notifications, deliveries and registration tokens: one module for each family of tables."""
