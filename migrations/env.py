"""Runs the migrations on the connection that the program hands over, or, for developers, on `-x url=…`."""

import asyncio
from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection

from adapters.postgres.engine import async_engine
from adapters.postgres.tables import Said, metadata


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:  # noqa: ANN401  alembic's signature
    """Write plain `Text` into migrations: how we clean it on the way in may change, the column does not."""
    return "sa.Text()" if kind == "type" and isinstance(item, Said) else False


def migrate(connection: Connection) -> None:
    """Run what was asked for."""
    context.configure(connection=connection, target_metadata=metadata, render_item=render_item)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_url(url: str) -> None:
    """Run what was asked for on a database of its own."""
    engine = async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    asyncio.run(migrate_url(context.get_x_argument(as_dictionary=True)["url"]))
