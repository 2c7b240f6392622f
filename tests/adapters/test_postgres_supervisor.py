"""The embedded server through everything that can happen to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from adapters.postgres.programs import find_programs
from adapters.postgres.supervisor import EmbeddedServer
from domain.errors import BackendUnavailable, StoreUnavailable
from tests.conftest import end_server, kill, server_processes

pytestmark = pytest.mark.postgres

REPOSITORY = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can arrange this")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, copy_cluster: Callable[[Path], Path]) -> Iterator[Path]:
    folder = copy_cluster(tmp_path_factory.mktemp("shared") / "数据 与 空格")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def healthy(cluster: Path) -> Iterator[Path]:
    """A data folder for tests that leave it as they found it; the server is stopped."""
    yield cluster
    end_server(cluster)


# A program that uses the database until it is told to leave.
CLIENT = """
import sys
from pathlib import Path
from adapters.postgres.programs import find_programs
from adapters.postgres.supervisor import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), find_programs(None))
print(server.start().port, flush=True)
sys.stdin.readline()
server.leave()
print("left", flush=True)
"""


def server_of(data_folder: Path) -> EmbeddedServer:
    return EmbeddedServer(data_folder / "pg", find_programs(None))


def client(data_folder: Path, *prefix: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", CLIENT, data_folder / "pg"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(server: EmbeddedServer, question: str) -> object:
    url = server.where()
    assert url is not None
    dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(dsn, autocommit=True) as connection:
        answer = connection.execute(question)
        return answer.fetchall()[0][0] if answer.description else None


def answers(server: EmbeddedServer) -> bool:
    return ask(server, "SELECT count(*) FROM zishu.turns") is not None


def test_the_first_start_makes_the_database_and_the_last_to_leave_stops_it(tmp_path: Path) -> None:
    server = server_of(tmp_path / "数据 与 空格")
    try:
        assert server.where() is None
        url = server.start()
        assert server.start() == url
        assert ask(server, "SHOW data_checksums") == "on"
        assert ask(server, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "C.UTF-8"
        server.leave()
        assert server.where() is None
        assert server_processes(tmp_path / "数据 与 空格") == []
    finally:
        end_server(tmp_path / "数据 与 空格")


def test_three_programs_at_once_share_one_server(healthy: Path) -> None:
    clients = [client(healthy) for _ in range(3)]
    ports = {each.stdout.readline() for each in clients}
    assert len(ports) == 1
    postmaster = server_processes(healthy)[0]
    for number, each in enumerate(clients):
        assert server_processes(healthy)[0] == postmaster, f"stopped before client {number} left"
        assert each.communicate("\n")[0] == "left\n"
    assert server_processes(healthy) == []


def test_a_killed_program_neither_stops_the_server_nor_keeps_it_for_ever(healthy: Path) -> None:
    killed, other = client(healthy), client(healthy)
    for each in (killed, other):
        each.stdout.readline()
    killed.kill()
    killed.communicate()
    assert answers(server_of(healthy))
    other.communicate("\n")
    assert server_processes(healthy) == []


@pytest.mark.parametrize("whom", ["postmaster", "everyone", "a worker"])
def test_a_killed_server_is_started_again(healthy: Path, whom: str) -> None:
    server = server_of(healthy)
    server.start()
    processes = server_processes(healthy)
    kill({"postmaster": processes[:1], "everyone": processes, "a worker": processes[-1:]}[whom])
    server.start()
    assert answers(server)
    server.leave()
    assert server_processes(healthy) == []


@pytest.mark.parametrize("owner", ["a stranger", "another postgres", "nobody", "nonsense"])
def test_the_file_of_a_dead_server_is_seen_through(healthy: Path, owner: str, postgres_url: object) -> None:
    others = [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == "postgres"]
    pid = {"a stranger": os.getpid(), "another postgres": others[0], "nobody": 4_000_000, "nonsense": "?"}[owner]
    (healthy / "pg" / "data" / "postmaster.pid").write_text(f"{pid}\n{healthy}\n1\n5432\n\n\n\nready\n")
    server = server_of(healthy)
    server.start()
    assert answers(server)
    server.leave()


def test_a_taken_port_is_left_to_its_owner_and_said(healthy: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = server_of(healthy)
    port = server.start().port
    server.leave()
    with socket.create_server(("127.0.0.1", port)):
        other = server.start().port
        assert other != port
        assert f"Port {port} is taken" in caplog.text
        assert answers(server)
        server.leave()
    assert server.start().port == other
    server.leave()


def test_another_postgres_on_the_port_is_not_taken_for_ours(healthy: Path, postgres_url: object) -> None:
    (healthy / "pg" / "port").write_text(str(postgres_url.port))
    server = server_of(healthy)
    assert server.where() is None
    assert server.start().port != postgres_url.port
    assert answers(server)
    server.leave()


def test_an_initialisation_killed_half_way_is_begun_again(tmp_path: Path) -> None:
    begun = subprocess.Popen(
        [sys.executable, "-c", CLIENT, tmp_path / "pg"], cwd=REPOSITORY, start_new_session=True
    )  # fmt: skip
    while not list(tmp_path.glob("pg/data.init.*/base/1/PG_VERSION")):
        assert begun.poll() is None
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert not (tmp_path / "pg" / "data").exists()
    server = server_of(tmp_path)
    try:
        server.start()
        assert [path.name for path in (tmp_path / "pg").glob("data*")] == ["data"]
        server.leave()
    finally:
        end_server(tmp_path)


def test_a_broken_database_says_how_to_go_on(data_folder: Path) -> None:
    (data_folder / "pg" / "data" / "global" / "pg_control").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="broken") as refused:
        server_of(data_folder).start()
    assert "zishu db restore" in refused.value.remedy


def test_a_healthy_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pg" / "data").mkdir(parents=True)
    (tmp_path / "pg" / "data" / "diary.txt").write_text("不要动")
    (tmp_path / "pg" / "password").write_text("x")
    with pytest.raises(StoreUnavailable):
        server_of(tmp_path).start()
    assert (tmp_path / "pg" / "data" / "diary.txt").read_text() == "不要动"


def test_a_lost_or_wrong_password_says_how_to_go_on(data_folder: Path) -> None:
    server = server_of(data_folder)
    server.start()
    password = data_folder / "pg" / "password"
    kept = password.read_text()
    for spoil in (lambda: password.write_text("wrong"), password.unlink):
        spoil()
        with pytest.raises(StoreUnavailable, match="password"):
            server_of(data_folder).start()
    password.write_text(kept)
    assert answers(server)
    server.leave()


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    done = subprocess.run(["mount", *options, folder], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("this container may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@as_root
def test_a_read_only_data_folder_is_refused_with_a_remedy(data_folder: Path) -> None:
    with mounted(data_folder, "--bind", data_folder):
        subprocess.run(["mount", "-o", "remount,ro,bind", data_folder], check=True)
        with pytest.raises(StoreUnavailable, match="Read-only") as refused:
            server_of(data_folder).start()
        assert "ZISHU_DATA_DIR" in refused.value.remedy


@as_root
@pytest.mark.parametrize("megabytes", [1, 10, 30])
def test_a_full_disk_is_told_and_a_later_start_succeeds(tmp_path: Path, megabytes: int) -> None:
    with mounted(tmp_path, "-t", "tmpfs", "-o", f"size={megabytes}m", "none"):
        server = server_of(tmp_path)
        try:
            with pytest.raises(StoreUnavailable, match="disk is full") as refused:
                server.start()
            assert refused.value.remedy == "Free some space there."
            subprocess.run(["mount", "-o", "remount,size=200m", tmp_path], check=True)
            server.start()
            server.leave()
        finally:
            end_server(tmp_path)


@as_root
def test_root_lends_its_rights_to_nobody(data_folder: Path) -> None:
    parent = data_folder.parent
    parent.chmod(0o700)
    server = server_of(data_folder)
    server.start()
    assert {process.uids().real for process in server_processes(data_folder)} == {65534}
    assert parent.stat().st_mode & 0o777 == 0o700
    server.leave()


@as_root
def test_a_normal_user_runs_it_as_himself(data_folder: Path) -> None:
    for path in (data_folder, *data_folder.rglob("*")):
        os.chown(path, 1234, 1234)
    data_folder.parent.chmod(0o711)
    # the right to read and enter folders lets this user reach the interpreter and the programs, wherever they lie
    reach = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    user = client(data_folder, "setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", *reach)
    user.stdout.readline()
    assert {process.uids().real for process in server_processes(data_folder)} == {1234}
    assert user.communicate("\n")[0] == "left\n"
    assert server_processes(data_folder) == []


def test_what_people_said_reaches_no_log(healthy: Path) -> None:
    server = server_of(healthy)
    dsn = server.start().set(drivername="postgresql").render_as_string(hide_password=False)
    canary = "金丝雀canary"
    insert = "INSERT INTO zishu.ratings (turn_id, note) VALUES (%s, %s)"
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement, values in (
            (insert, [canary, canary]),
            (insert, ["7b2c8f6e-5a0c-4d5a-9f8e-111111111111", canary]),
            (f"SELECT '{canary}'::int", None),
            (f"SELECT {canary}", None),
            ("SELECT pg_sleep(0.01), %s::text", [canary]),
        ):
            try:
                connection.execute(statement, values)
            except psycopg.Error:
                continue
        backend = connection.info.backend_pid
    with psycopg.connect(dsn, autocommit=True) as connection:
        backend = connection.info.backend_pid
        with pytest.raises(psycopg.OperationalError):
            connection.execute(f"SELECT '{canary}', pg_terminate_backend({backend})")
    kill(server_processes(healthy)[-1:])
    server.start()
    server.leave()
    log = (healthy / "pg" / "server.log").read_text()
    assert "terminated by signal 9" in log
    assert "canary" not in log


def test_the_log_is_cut_when_it_has_grown(healthy: Path) -> None:
    log = healthy / "pg" / "server.log"
    log.write_bytes(b"x" * 1_000_001)
    server = server_of(healthy)
    server.start()
    server.leave()
    assert log.stat().st_size < 10_000
    assert re.fullmatch(b"x+", (healthy / "pg" / "server.log.1").read_bytes())


def test_stopping_by_hand_respects_those_who_use_it(healthy: Path) -> None:
    assert server_of(healthy).stop() is False
    user = client(healthy)
    user.stdout.readline()
    with pytest.raises(StoreUnavailable, match="Another program"):
        server_of(healthy).stop()
    user.kill()
    user.communicate()
    assert server_of(healthy).stop() is True
    assert server_processes(healthy) == []


def test_a_server_told_to_stop_by_the_system_is_waited_for_and_started_again(healthy: Path) -> None:
    server = server_of(healthy)
    server.start()
    server_processes(healthy)[0].send_signal(signal.SIGTERM)
    server.start()
    assert answers(server)
    server.leave()


def test_missing_programs_name_the_setting(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no PostgreSQL") as refused:
        find_programs(tmp_path)
    assert "bin_dir" in refused.value.remedy


def test_programs_of_another_folder_serve_as_well(tmp_path: Path, copy_cluster: Callable[[Path], Path]) -> None:
    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)

    installation = tmp_path / "my postgres"
    shutil.copytree(find_programs(None).folder.parent, installation, symlinks=True, copy_function=link)
    folder = copy_cluster(tmp_path / "data")
    server = EmbeddedServer(folder / "pg", find_programs(installation / "bin"))
    try:
        server.start()
        assert server_processes(folder)[0].exe().startswith(str(installation))
        server.leave()
    finally:
        end_server(folder)
