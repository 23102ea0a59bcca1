"""What durable transactions are measured beside: disk, LMDB, SQLite and PostgreSQL with the same work."""
