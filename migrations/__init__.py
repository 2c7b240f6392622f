"""How the schema came to be, one step after the other: Alembic runs them, `adapters.postgres.schema` starts it.

A new step, with a database at hand that is at the newest one:

    alembic -c migrations/alembic.ini -x url=postgresql://… revision --autogenerate --rev-id 0002 -m "what it adds"

Then `REVISION` in `adapters/postgres/tables.py` names it.
"""
