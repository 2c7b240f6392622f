"""What tests share: a PostgreSQL for the whole run, a database for each module, a data folder for each test."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
import pytest
from hypothesis import settings
from sqlalchemy import URL

from adapters.postgres.engine import Config, Database
from adapters.postgres.programs import find_programs
from adapters.postgres.supervisor import EmbeddedServer

# On how many examples a law is tried: `make test` samples, `make proof` goes further. A test with max_examples of its
# own is deaf to this.
settings.register_profile("test", max_examples=50, deadline=None)
settings.register_profile("proof", max_examples=1000, deadline=None)
settings.load_profile("proof" if os.environ.get("ZISHU_PROOF") else "test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that install everything anew: the others run beside them, and nobody waits in the end."""
    items.sort(key=lambda item: item.get_closest_marker("clone") is None)


def server_processes(data_folder: Path) -> list[psutil.Process]:
    """Return the living processes of the embedded server of a data folder, the postmaster first."""
    home = str(data_folder / "pg" / "data")
    found = [
        process
        for process in psutil.process_iter(["cwd", "status", "create_time"])
        if process.info["cwd"] == home and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    return sorted(found, key=lambda process: process.info["create_time"])


def kill(processes: list[psutil.Process]) -> None:
    """Kill -9; who dies with the one before is welcome to."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def end_server(data_folder: Path) -> None:
    """Let no server outlive a test, whatever has happened to it."""
    kill(server_processes(data_folder))


@pytest.fixture(scope="session")
async def cluster_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose embedded database is made and migrated, and stopped."""
    folder = tmp_path_factory.mktemp("cluster")
    database = Database(Config(), folder)
    try:
        await database.connect()
        await database.close()
    finally:
        end_server(folder)
    # What a test kills is the server, never the machine; and the disk of a test machine is busy enough.
    with (folder / "pg" / "data" / "postgresql.conf").open("a") as conf:
        conf.write("\nfsync = off\n")
    return folder


@pytest.fixture(scope="session")
def copy_cluster(cluster_template: Path) -> Callable[[Path], Path]:
    """Makes a data folder with a migrated embedded database, in a fraction of the time that a first start takes."""

    def copy(folder: Path) -> Path:
        folder.mkdir(parents=True)
        subprocess.run(["cp", "-a", cluster_template / "pg", folder / "pg"], check=True)
        (folder / "pg" / "port").unlink()
        return folder

    return copy


@pytest.fixture
def data_folder(tmp_path: Path, copy_cluster: Callable[[Path], Path]) -> Iterator[Path]:
    """A data folder of this test alone, with a migrated embedded database that is stopped."""
    folder = copy_cluster(tmp_path / "数据 目录")
    yield folder
    end_server(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url(
    tmp_path_factory: pytest.TempPathFactory, copy_cluster: Callable[[Path], Path]
) -> Iterator[URL]:  # fmt: skip
    """A server that plays the external one, for the whole run."""
    folder = copy_cluster(tmp_path_factory.mktemp("external") / "server")
    yield EmbeddedServer(folder / "pg", find_programs(None)).start()
    end_server(folder)
    shutil.rmtree(folder)


def create_database(server: URL, *, template: str) -> str:
    """Create a database as a copy of `postgres`, which is migrated, or of `template0`, which is empty."""
    name = f"test_{uuid4().hex}"
    admin = server.set(drivername="postgresql", database="template1").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return server.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="module")
async def database(postgres_url: URL, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Database]:
    """A migrated database of this module alone."""
    made = Database(Config(url=create_database(postgres_url, template="postgres")), tmp_path_factory.mktemp("data"))
    yield made
    await made.close()
