"""What composes features in one transaction."""
