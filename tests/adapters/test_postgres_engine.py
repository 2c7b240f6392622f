"""The database as the stores use it: found, found again, and never forgetting what it has acknowledged."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic import ValidationError
from sqlalchemy import URL, text

from adapters.postgres.engine import Config, Database
from adapters.sessions.postgres.store import PostgresSessions
from domain.conversation import ReplyState, Scope, Turn
from domain.errors import BadInput, StoreUnavailable
from tests.conftest import create_database, end_server, kill, server_processes

pytestmark = pytest.mark.postgres

REPOSITORY = Path(__file__).parents[2]
NOW = datetime(2026, 11, 23, tzinfo=UTC)

# A program that commits turns as fast as it can and prints the number of each that was acknowledged.
WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4
from adapters.postgres.engine import Config, Database
from adapters.sessions.postgres.store import PostgresSessions
from domain.conversation import Scope, Turn

async def main():
    sessions = PostgresSessions(Database(Config(), Path(sys.argv[1])))
    session = await sessions.open(Scope("local", "zishu"), now=datetime.now(UTC))
    for number in range(int(sys.argv[2]), 1_000_000):
        await sessions.commit(session, Turn(UUID(int=number), "说" * 50, datetime.now(UTC)))
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def embedded(data_folder: Path) -> AsyncIterator[Database]:
    made = Database(Config(), data_folder)
    yield made
    await made.close()


def write(data_folder: Path, start: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, data_folder, str(start)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )


async def one(database: Database) -> object:
    return (await database.execute(text("SELECT 1")))[0][0]


async def test_nothing_runs_before_the_first_use_and_nothing_after_the_last(data_folder: Path) -> None:
    database = Database(Config(), data_folder)
    assert (await database.status()).address is None
    assert server_processes(data_folder) == []
    assert await asyncio.gather(*(one(database) for _ in range(5))) == [1] * 5
    status = await database.status()
    assert (status.kind, status.version, status.problem) == ("embedded", "18.6", None)
    await database.close()
    assert server_processes(data_folder) == []


@pytest.mark.parametrize("whom", [slice(0, 1), slice(None)], ids=["postmaster", "everyone"])
async def test_a_server_killed_under_way_is_found_again(embedded: Database, data_folder: Path, whom: slice) -> None:
    assert await one(embedded) == 1
    kill(server_processes(data_folder)[whom])
    assert await asyncio.gather(*(one(embedded) for _ in range(5))) == [1] * 5


async def test_a_start_survives_the_one_who_asked_for_it(embedded: Database) -> None:
    impatient = asyncio.create_task(embedded.connect())
    await asyncio.sleep(0.01)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert await one(embedded) == 1


async def test_work_that_is_cancelled_leaves_the_database_usable(database: Database) -> None:
    for milliseconds in (0, 1, 2, 4, 8, 16, 32):
        tasks = [asyncio.create_task(database.execute(text("SELECT pg_sleep(0.02)"))) for _ in range(4)]
        await asyncio.sleep(milliseconds / 1000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await one(database) == 1
    assert (await database.connect()).pool.checkedout() == 0


async def test_a_cancelled_write_does_not_overtake_the_one_after_it(database: Database) -> None:
    sessions = PostgresSessions(database)
    session = await sessions.open(Scope(f"{uuid4()}", "zishu"), now=NOW)
    turn = Turn(uuid4(), "讲个故事", NOW)
    for steps in range(20):
        older = asyncio.create_task(sessions.commit(session, replace(turn, reply="旧", state=ReplyState.PENDING)))
        for _ in range(steps):
            await asyncio.sleep(0)
        older.cancel()
        await asyncio.gather(older, return_exceptions=True)
        newer = replace(turn, reply=f"新{steps}", state=ReplyState.INTERRUPTED)
        await sessions.commit(session, newer)
        assert await sessions.read(session.scope, session.id) == [newer]


@pytest.mark.parametrize("victim", ["program", "server", "both"])
async def test_kill_9_loses_nothing_that_was_acknowledged(data_folder: Path, victim: str) -> None:
    acknowledged: list[int] = []
    for start in (1, 100_001):
        writer = write(data_folder, start)
        acknowledged += [int(writer.stdout.readline()) for _ in range(60)]
        if victim != "program":
            kill(server_processes(data_folder))
        if victim == "server":  # the program goes on, and is stopped later
            acknowledged += [int(writer.stdout.readline()) for _ in range(60)]
        writer.kill()
        acknowledged += [int(line) for line in writer.communicate()[0].split("\n")[:-1]]
    database = Database(Config(), data_folder)
    sessions = PostgresSessions(database)
    (conversation,) = await sessions.conversations(Scope("local", "zishu"))
    stored = {turn.id for turn in await sessions.read(Scope("local", "zishu"), conversation.id)}
    await database.close()
    assert len(acknowledged) >= 120
    assert {UUID(int=number) for number in acknowledged} <= stored
    end_server(data_folder)


async def test_an_external_server_needs_no_data_folder(postgres_url: URL, tmp_path: Path) -> None:
    database = Database(Config(url=create_database(postgres_url, template="template0")), tmp_path)
    assert await one(database) == 1
    status = await database.status()
    assert (status.kind, status.revision) == ("external", "0001")
    assert "zishu:" not in str(status.address)
    with pytest.raises(StoreUnavailable, match="not the embedded"):
        await database.stop()
    await database.close()
    assert list(tmp_path.iterdir()) == []


async def test_an_external_server_that_restarts_is_found_again(postgres_url: URL, tmp_path: Path) -> None:
    database = Database(Config(url=create_database(postgres_url, template="postgres")), tmp_path)
    assert await one(database) == 1
    ended = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
    with pytest.raises(StoreUnavailable):  # it ends itself, twice
        await database.execute(ended)
    assert await one(database) == 1
    await database.close()


async def test_an_unreachable_server_is_told_without_its_password(tmp_path: Path) -> None:
    database = Database(Config(url="postgresql://me:geheim@127.0.0.1:1/none"), tmp_path)
    for _ in range(3):
        with pytest.raises(StoreUnavailable) as refused:
            await one(database)
        assert "geheim" not in str(refused.value)
    assert "refused" in str((await database.status()).problem)
    assert "geheim" not in repr(Config(url="postgresql://me:geheim@127.0.0.1:1/none"))
    await database.close()


async def test_a_wrong_statement_never_repeats_what_was_said(database: Database) -> None:
    with pytest.raises(BadInput) as refused:
        await database.execute(text("SELECT CAST(:said AS integer)").bindparams(said="秘密"))
    assert "秘密" not in str(refused.value)


@pytest.mark.parametrize("owner", ["a\0b", "a\ud800"])
async def test_a_scope_that_cannot_be_stored_is_refused(database: Database, owner: str) -> None:
    with pytest.raises(BadInput):
        await PostgresSessions(database).open(Scope(owner, "zishu"), now=NOW)


@pytest.mark.parametrize("url", ["mysql://root@localhost/x", "postgresql://me:geheim@host:port/x", "数据库"])
def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="postgresql://user:password@host/database") as refused:
        Config(url=url)
    assert "geheim" not in str(refused.value)


async def test_the_settings_of_the_users_shell_do_not_reach_the_embedded_server(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGHOST": "elsewhere", "PGHOSTADDR": "192.0.2.1", "PGPORT": "1", "PGSSLMODE": "verify-full",
        "PGOPTIONS": "-c search_path=nowhere", "PGDATA": "/nowhere", "PGPASSWORD": "x", "LC_ALL": "zh_CN.GB18030",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    database = Database(Config(), data_folder)
    assert await one(database) == 1
    assert (await database.back_up()).stat().st_size > 0
    await database.close()
