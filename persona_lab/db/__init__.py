"""Storage: tables, queries, migrations and Redis. The only package with SQL."""
