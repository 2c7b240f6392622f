"""Brings the schema of a database up to date."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from adapters.postgres.tables import REVISION, SCHEMA
from domain.errors import StoreUnavailable

# Any number, as long as all versions of Zishu use the same.
_UPGRADING = 0x7A697368


async def revision_of(connection: AsyncConnection) -> str | None:
    """Return the migration that a database is at, or None where Zishu has never been."""
    if await connection.scalar(text("SELECT to_regclass(:name)"), {"name": f"{SCHEMA}.alembic_version"}) is None:
        return None
    revision: str | None = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


async def bring_up_to_date(engine: AsyncEngine, back_up: Callable[[], Awaitable[object]]) -> None:
    """Run the migrations that are missing, after a backup where there is something to lose.

    Several programs may do so at once; one works, the others wait and find it done.

    Raises:
        StoreUnavailable: A newer version of Zishu has been here.
        DBAPIError: The database refuses, for example to create the extension.
    """
    async with engine.connect() as connection:
        if await revision_of(connection) == REVISION:
            return
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADING})
        revision = await revision_of(connection)
        if revision == REVISION:
            return
        if revision is not None:
            _refuse_newer(revision)
            await back_up()
        await connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        await connection.run_sync(_upgrade)


def _refuse_newer(revision: str) -> None:
    from alembic.script import ScriptDirectory

    if revision not in {script.revision for script in ScriptDirectory(_migrations()).walk_revisions()}:
        raise StoreUnavailable(
            f"A newer version of Zishu has changed the database (revision {revision}, known here: {REVISION}).",
            "Update Zishu, or go back to an older backup: zishu db restore FILE",
        )


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", _migrations().replace("%", "%%"))
    command.upgrade(config, REVISION)


def _migrations() -> str:
    import migrations

    return str(Path(str(migrations.__file__)).parent)
