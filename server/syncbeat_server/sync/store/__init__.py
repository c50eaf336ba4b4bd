"""SQL of scopes, changes and cursors, one file for each family of tables."""
