"""The two commands in a clean clone of what is committed, as somebody new to the project has it."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.clone, pytest.mark.slow, pytest.mark.model, pytest.mark.postgres]


def make(clone: Path, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run make as a new user would, with folders of one's own. Only pip's cache is shared; it is in XDG_CACHE_HOME."""
    ours = ("ZISHU_", "MAKE", "PYTEST_", "VIRTUAL_ENV")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    caches = Path(inherited.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    environment = {"PIP_CACHE_DIR": str(caches / "pip"), **inherited, **folders(clone)}
    command = ["make", *words]
    return subprocess.run(command, cwd=clone, env=environment, input=text, capture_output=True, text=True, check=False)


def folders(clone: Path) -> dict[str, str]:
    return {name: str(clone.parent / name) for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("nothing is committed yet, so there is nothing to clone")
    folder = tmp_path_factory.mktemp("clone") / "zishu"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    if not (folder / "bootstrap.py").exists():
        pytest.skip("the commands are not committed yet")
    yield folder
    zishu = folder / ".venv" / "bin" / "zishu"
    if zishu.exists():
        subprocess.run([zishu, "db", "stop"], env={**os.environ, **folders(folder)}, capture_output=True, check=False)


def stored_lines(clone: Path) -> list[str]:
    program = """
import asyncio
from datetime import UTC, datetime
from domain.conversation import Scope
from entrypoints.container import build_container
from entrypoints.settings import load_settings

async def lines():
    settings = load_settings()
    container = build_container(settings)
    session = await container.sessions().open(Scope(settings.user, settings.character), now=datetime.now(UTC))
    await container.database().close()
    return [turn.user_text for turn in session.turns if turn.reply]

print(*asyncio.run(lines()), sep="\\n")
"""
    command = [clone / ".venv" / "bin" / "python", "-c", program]
    environment = {**os.environ, **folders(clone)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_she_answers_in_chinese_and_goes_on_with_the_conversation_next_time(clone: Path) -> None:
    first = make(clone, "chat", text="你好，你是谁？\n我叫小明，今天考试没考好。\n")
    assert first.returncode == 0, first.stderr
    replies = [line for line in first.stdout.splitlines() if line.strip()]
    assert len(replies) >= 2
    assert all(re.search(r"[\u4e00-\u9fff]", reply) for reply in replies), first.stdout

    again = subprocess.run(["python3", "bootstrap.py", "chat"], cwd=clone, capture_output=True, text=True, check=True)
    assert (again.stdout, again.stderr) == ("", "")

    second = make(clone, "chat", text="你还记得我叫什么吗？\n")
    assert second.returncode == 0, second.stderr
    assert re.search(r"[\u4e00-\u9fff]", second.stdout)
    assert stored_lines(clone) == ["你好，你是谁？", "我叫小明，今天考试没考好。", "你还记得我叫什么吗？"]


def test_make_test_gets_as_far_as_collecting(clone: Path) -> None:
    collected = make(clone, "test", "PYTEST_ARGS=--collect-only -q")
    assert collected.returncode == 0, collected.stdout[-2000:] + collected.stderr[-2000:]
    assert re.search(r"\d+ tests collected", collected.stdout)
