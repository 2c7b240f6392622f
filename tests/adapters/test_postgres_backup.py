"""Backups, and bringing them back."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, text

from adapters.postgres.backup import KEPT_AUTOMATIC, back_up
from adapters.postgres.engine import Config, Database
from adapters.postgres.programs import find_programs
from adapters.sessions.postgres.store import PostgresSessions
from domain.conversation import Scope, Turn
from domain.errors import BadInput, StoreUnavailable
from tests.conftest import create_database

pytestmark = pytest.mark.postgres

NOW = datetime(2026, 11, 23, tzinfo=UTC)
SCOPE = Scope("local", "zishu")


@pytest.fixture
async def own(postgres_url: URL, tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(Config(url=create_database(postgres_url, template="postgres")), tmp_path)
    yield made
    await made.close()


async def say(database: Database, words: str) -> None:
    sessions = PostgresSessions(database)
    await sessions.commit(await sessions.open(SCOPE, now=NOW), Turn(uuid4(), words, NOW))


async def said(database: Database) -> list[str]:
    return [turn.user_text for turn in (await PostgresSessions(database).open(SCOPE, now=NOW)).turns]


async def test_a_backup_brings_everything_back_and_keeps_what_it_replaces(own: Database) -> None:
    await say(own, "从前")
    backup = await own.back_up()
    assert backup.stat().st_mode & 0o777 == 0o600
    await say(own, "后来")
    before = await own.restore(backup)
    assert await said(own) == ["从前"]
    await say(own, "又来")
    assert before is not None
    await own.restore(before)
    assert await said(own) == ["从前", "后来"]
    assert set((await own.status()).backups) > {backup, before}


async def test_a_backup_moves_to_a_fresh_embedded_database(own: Database, data_folder: Path) -> None:
    await say(own, "搬家")
    backup = await own.back_up()
    new_home = Database(Config(), data_folder)
    await new_home.restore(backup)
    assert await said(new_home) == ["搬家"]
    await new_home.close()


async def test_restoring_leaves_what_others_keep_in_the_database(own: Database) -> None:
    backup = await own.back_up()
    await own.execute(text("CREATE TABLE public.of_others AS SELECT 1 AS kept"))
    await own.restore(backup)
    assert (await own.execute(text("SELECT kept FROM public.of_others")))[0][0] == 1


async def test_a_damaged_or_strange_file_changes_nothing(own: Database, tmp_path: Path) -> None:
    await say(own, "还在")
    backup = await own.back_up()
    whole = backup.read_bytes()
    for name, content in {"half": whole[: len(whole) // 2], "empty": b"", "text": "日记".encode() * 999}.items():
        file = tmp_path / name
        file.write_bytes(content)
        with pytest.raises(BadInput) as refused:
            await own.restore(file)
        assert "zishu db status" in refused.value.remedy
    with pytest.raises(BadInput):
        await own.restore(tmp_path / "missing")
    assert await said(own) == ["还在"]
    assert list((tmp_path / "backups").glob("*.part")) == []


async def test_only_the_newest_of_the_automatic_backups_are_kept(own: Database, tmp_path: Path) -> None:
    asked = await own.back_up()
    async with (await own.connect()).connect() as connection:
        url = connection.engine.url
    taken = [
        back_up(find_programs(None), url, tmp_path / "backups", before="upgrade") for _ in range(KEPT_AUTOMATIC + 2)
    ]
    assert set((tmp_path / "backups").iterdir()) == {asked, *taken[2:]}


async def test_a_backup_that_cannot_be_written_is_told(own: Database, tmp_path: Path) -> None:
    await own.connect()
    (tmp_path / "backups").symlink_to("/proc")
    with pytest.raises(StoreUnavailable) as refused:
        await own.back_up()
    assert refused.value.remedy
