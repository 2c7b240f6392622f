"""PostgreSQL, embedded or anybody's: the server's life, the engine, the schema, and its backups."""
