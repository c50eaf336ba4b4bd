"""PostgreSQL: connections, transactions and what failures mean."""
