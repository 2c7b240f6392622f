"""How the schema is brought up to date."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, text

import migrations
from adapters.postgres import schema
from adapters.postgres.engine import Config, Database
from adapters.postgres.tables import REVISION, metadata
from domain.errors import StoreUnavailable
from tests.conftest import create_database

pytestmark = pytest.mark.postgres

MIGRATIONS = Path(migrations.__file__).parent
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", "{before}"


def upgrade() -> None:
    op.add_column("turns", sa.Column("mark", sa.Text()))
    {more}
"""


@pytest.fixture
async def old(postgres_url: URL, tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(Config(url=create_database(postgres_url, template="postgres")), tmp_path)
    yield made
    await made.close()


def upgrade_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str = "") -> None:
    """Make the program one migration newer than the databases of these tests."""
    folder = tmp_path / "100% new"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_next.py").write_text(NEXT.format(before=REVISION, more=more))
    monkeypatch.setattr(schema, "REVISION", "9999")
    monkeypatch.setattr(schema, "_migrations", lambda: str(folder))


def test_the_newest_migration_is_the_one_the_tables_name() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [REVISION]


async def test_migrations_and_tables_agree(database: Database) -> None:
    def differences(connection: Connection) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with (await database.connect()).connect() as connection:
        assert await connection.run_sync(differences) == []
        assert await connection.scalar(text("SELECT '[1,2]'::halfvec <=> '[1,2]'::halfvec")) == 0


def test_the_command_line_of_alembic_finds_nothing_to_add(postgres_url: URL) -> None:
    url = create_database(postgres_url, template="postgres")
    config = AlembicConfig(MIGRATIONS / "alembic.ini", cmd_opts=type("Options", (), {"x": [f"url={url}"]})())
    command.check(config)


async def test_two_programs_that_meet_an_empty_database_make_it_once(postgres_url: URL, tmp_path: Path) -> None:
    url = create_database(postgres_url, template="template0")
    both = [Database(Config(url=url), tmp_path) for _ in range(2)]
    await asyncio.gather(*(each.connect() for each in both))
    for each in both:
        assert (await each.status()).revision == REVISION
        await each.close()
    assert not (tmp_path / "backups").exists()


async def test_an_upgrade_takes_a_backup_first(
    old: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    upgrade_to_come(tmp_path, monkeypatch)
    await old.execute(text("SELECT mark FROM turns"))
    status = await old.status()
    assert status.revision == "9999"
    assert [path.name.endswith("-before-upgrade.dump") for path in status.backups] == [True]


async def test_an_upgrade_that_fails_changes_nothing(
    old: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    upgrade_to_come(tmp_path, monkeypatch, more="op.drop_table('no_such_table')")
    with pytest.raises(StoreUnavailable):
        await old.connect()
    status = await old.status()
    assert (status.revision, len(status.backups)) == (REVISION, 1)


async def test_without_room_for_the_backup_nothing_is_upgraded(
    old: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    upgrade_to_come(tmp_path, monkeypatch)
    (tmp_path / "backups").write_text("no folder")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        await old.connect()
    assert (await old.status()).revision == REVISION


async def test_a_database_of_a_newer_version_is_left_alone(old: Database, postgres_url: URL) -> None:
    async with (await old.connect()).begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
        url = connection.engine.url.render_as_string(hide_password=False)
    later = Database(Config(url=url), Path("/nonexistent"))
    with pytest.raises(StoreUnavailable, match="newer version of Zishu") as refused:
        await later.connect()
    assert "Update Zishu" in refused.value.remedy
    await later.close()
