"""`zishu db` as a person and as a program use it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from domain.errors import BadInput
from entrypoints.cli import app
from tests.conftest import server_processes

pytestmark = pytest.mark.postgres


@pytest.fixture
def zishu(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZISHU_DATA_DIR", str(data_folder))
    monkeypatch.chdir(data_folder)
    return data_folder


def db(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["db", *arguments])


def data(*arguments: str) -> dict[str, object]:
    result = db(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_backup_is_listed_and_brought_back_and_nothing_runs_on(zishu: Path) -> None:
    assert data("status")["running"] is False
    backup = data("backup")
    assert Path(str(backup["file"])).stat().st_size == backup["bytes"]
    restored = data("restore", str(backup["file"]))
    assert data("status")["backups"] == [restored["before"], backup["file"]]
    assert data("stop") == {"stopped": False}
    assert server_processes(zishu) == []


def test_what_people_read_says_what_happened(zishu: Path) -> None:
    backup = db("backup").stdout.strip()
    assert Path(backup).parent == zishu / "backups"
    assert "What was there before is in" in db("restore", backup).stdout
    status = db("status").stdout
    assert "embedded" in status
    assert "stopped" in status
    assert backup in status
    assert db("stop").stdout == "It was not running.\n"


def test_a_database_that_should_answer_and_does_not_is_an_error(zishu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZISHU_DATABASE__URL", "postgresql://me:geheim@127.0.0.1:1/none")
    result = db("status", "--json")
    assert result.exit_code == 1
    assert "refused" in json.loads(result.stdout)["problem"]
    assert "geheim" not in result.stdout


def test_a_file_that_is_no_backup_is_refused(zishu: Path) -> None:
    assert isinstance(db("restore", __file__).exception, BadInput)


def test_a_mistyped_command_explains_itself() -> None:
    assert db("restore").exit_code == 2
    for command in ("status", "backup", "restore", "stop"):
        assert command in db("--help").stdout
