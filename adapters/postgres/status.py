"""Looks at a database without changing it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from adapters.postgres.failures import translated
from adapters.postgres.schema import revision_of


@dataclass(frozen=True, slots=True)
class Status:
    """How the database is.

    Attributes:
        kind: The embedded server, or one given by its URL.
        address: Where it answers, without the password; None while the embedded server is stopped.
        problem: Why it cannot be used, where it should run and does not.
        version: The version of PostgreSQL.
        revision: The migration that it is at; None where Zishu has stored nothing yet.
        size_bytes: What the database takes on its disk.
        backups: The backups there are, newest first.
    """

    kind: Literal["embedded", "external"]
    backups: tuple[Path, ...]
    address: str | None = None
    problem: str | None = None
    version: str | None = None
    revision: str | None = None
    size_bytes: int | None = None


async def look_at(
    engine: AsyncEngine | None, kind: Literal["embedded", "external"], backups: tuple[Path, ...]
) -> Status:
    """Return how the database of an engine is, and dispose of the engine; without one, the database is stopped."""
    if engine is None:
        return Status(kind, backups)
    address = f"{engine.url.host}:{engine.url.port or 5432}/{engine.url.database}"
    try:
        async with engine.connect() as connection:
            return Status(
                kind,
                backups,
                address,
                version=await connection.scalar(text("SHOW server_version")),
                revision=await revision_of(connection),
                size_bytes=await connection.scalar(text("SELECT pg_database_size(current_database())")),
            )
    except DBAPIError as error:
        return Status(kind, backups, address, problem=translated(error).problem)
    finally:
        await engine.dispose()
