"""The program as a user starts it: real processes, the scripted model, a data folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ZISHU = [sys.executable, "-m", "entrypoints"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment with its own data and cache folders; its database stops at the end."""
    folder = tmp_path_factory.mktemp("她的家")
    environment = {
        **os.environ,
        "ZISHU_DATA_DIR": str(folder / "data"),
        "ZISHU_CACHE_DIR": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "ZISHU_LANGUAGE_MODEL__USE": "scripted",
        "ZISHU_EMBEDDER__USE": "hashed",
        "ZISHU_EMOTION_CLASSIFIER__USE": "ngram",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
    }
    yield environment
    subprocess.run([*ZISHU, "db", "stop"], env=environment, capture_output=True, check=False)


def zishu(home: dict[str, str], *arguments: str, said: bytes = b"", **more: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*ZISHU, *arguments], env={**home, **more}, input=said, capture_output=True, check=False, timeout=120, cwd=ROOT
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.postgres
def test_one_reply_as_json_is_a_valid_stream_that_ends_with_the_finished_event(home: dict[str, str]):
    done = zishu(home, "cli", "--once", "你好", "--json")
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["type"] == "turn.started"
    assert events[-1]["type"] == "turn.done"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len({event["turn_id"] for event in events}) == 1


@pytest.mark.postgres
def test_every_piped_line_gets_a_reply_and_a_new_program_remembers_them(home: dict[str, str]):
    done = zishu(home, "cli", "--user", "pipes", said="你好\n\n我叫小明\n".encode())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("紫舒：") == 2
    stored = zishu(home, "cli", "--user", "pipes", "--json", said="我叫什么".encode())
    assert json.loads(stored.stdout.splitlines()[0])["data"]["durability"] == "stored"
    assert json.loads(stored.stdout.splitlines()[0])["conversation_id"]


@pytest.mark.postgres
def test_broken_utf8_and_control_characters_are_answered_with_a_note(home: dict[str, str]):
    done = zishu(home, "cli", "--user", "bytes", said=b"\xff\xfe\xe4\xbd\xa0\x00\x07\n")
    assert done.returncode == 0, done.stderr
    assert "UTF-8" in done.stderr
    assert "紫舒：" in done.stdout


@pytest.mark.postgres
def test_a_message_of_a_megabyte_and_an_empty_one_are_refused_with_a_remedy(home: dict[str, str]):
    done = zishu(home, "cli", "--user", "long", said=("长" * 400_000 + "\n你好\n").encode())
    assert done.returncode == 1
    assert "20,000" in done.stderr
    assert done.stdout.count("紫舒：") == 1, "the next line is answered all the same"
    empty = zishu(home, "cli", "--once", "  ")
    assert empty.returncode == 1
    assert "怎么办" in empty.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("cli", "--once", "你好", "--backend", "gpt9"), "gpt9"),
        (("cli", "--once", "你好", "--character", "nobody"), "nobody"),
        (("cli", "--onec", "你好"), "--onec"),
        (("cli", "--once", "你好", "--character", "../x"), "character"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_named(home: dict[str, str], arguments: tuple[str, ...], expected: str):
    done = zishu(home, *arguments)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_data_folder_that_cannot_be_made_is_an_error_with_a_remedy(home: dict[str, str]):
    done = zishu(home, "cli", "--once", "你好", ZISHU_DATA_DIR="/proc/zishu")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "怎么办" in done.stderr


def test_doctor_backends_and_characters_print_valid_json(home: dict[str, str]):
    doctor = zishu(home, "doctor", "--json")
    assert {check["what"] for check in json.loads(doctor.stdout)["checks"]} >= {"python", "memory", "language_model"}
    ports = json.loads(zishu(home, "backends", "--json").stdout)
    assert {"scripted", "llama_cpp", "transformers", "openai_compatible"} <= set(
        next(row for row in ports if row["port"] == "language_model")["backends"]
    )
    people = json.loads(zishu(home, "characters", "--json").stdout)
    assert {person["id"] for person in people} == {"zishu", "lanzhou"}
    assert next(person for person in people if person["id"] == "zishu")["examples"] >= 600


def test_a_character_file_of_the_user_is_met_without_code_and_a_broken_one_is_named(home: dict[str, str]):
    folder = Path(home["ZISHU_DATA_DIR"]) / "characters"
    folder.mkdir(parents=True)
    packaged = (ROOT / "adapters" / "character" / "lanzhou.toml").read_text(encoding="utf-8")
    renamed = packaged.replace('display_name = "岚舟"', 'display_name = "小川"')
    (folder / "mine.toml").write_text(renamed, encoding="utf-8")
    done = zishu(home, "cli", "--once", "你好", "--character", "mine", "--user", "mine")
    assert "小川：" in done.stdout, done.stderr
    (folder / "mine.toml").write_text(packaged.replace("calls_user", "calls_usr"), encoding="utf-8")
    broken = zishu(home, "cli", "--once", "你好", "--character", "mine")
    assert "calls_us" in broken.stderr
    (folder / "mine.toml").unlink()


@pytest.mark.postgres
def test_killing_the_program_in_mid_reply_loses_no_acknowledged_sentence(home: dict[str, str]):
    slow = {**home, "ZISHU_LANGUAGE_MODEL__SCRIPTED__DELAY_S": "0.15"}
    program = subprocess.Popen(
        [*ZISHU, "cli", "--once", "讲讲今天", "--json", "--user", "killed"], env=slow, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert program.stdout
    acknowledged = ""
    for raw in program.stdout:
        event = json.loads(raw)
        if event["type"] == "reply.sentence":
            acknowledged += event["data"]["display"]
            break
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    assert acknowledged
    assert acknowledged in _stored(home, "killed")[-1]["reply"]


@pytest.mark.postgres
def test_killing_the_database_in_mid_reply_loses_nothing(home: dict[str, str]):
    slow = {**home, "ZISHU_LANGUAGE_MODEL__SCRIPTED__DELAY_S": "0.1"}
    program = subprocess.Popen(
        [*ZISHU, "cli", "--once", "讲讲今天", "--json", "--user", "storm"], env=slow, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert program.stdout
    kinds = []
    for raw in program.stdout:
        kinds.append(json.loads(raw)["type"])
        if kinds[-1] == "reply.delta" and kinds.count("reply.delta") == 1:
            postmaster = Path(home["ZISHU_DATA_DIR"]) / "pg" / "data" / "postmaster.pid"
            os.kill(int(postmaster.read_text().split()[0]), signal.SIGKILL)
    program.wait()
    program.stdout.close()
    assert kinds[-1] == "turn.done"
    turns = _stored(home, "storm")
    assert turns[-1]["user"] == "讲讲今天"
    assert turns[-1]["state"] == "finished"


def _stored(home: dict[str, str], user: str) -> list[dict[str, str]]:
    """Read a user's turns as another program does."""
    script = (
        "import asyncio, json, sys\n"
        "from entrypoints.container import build_container\n"
        "from domain.conversation import Scope\n"
        "async def main():\n"
        "    c = build_container(); s = c.sessions(); scope = Scope(sys.argv[1], 'zishu')\n"
        "    session = await s.open(scope, now=c.clock()())\n"
        "    print(json.dumps([dict(user=t.user_text, reply=t.reply, state=t.state) for t in session.turns]))\n"
        "    await c.database().close()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, user], env=home, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return json.loads(done.stdout)


@pytest.mark.postgres
@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is needed")
def test_ctrl_c_interrupts_the_reply_and_not_the_program(home: dict[str, str]):
    import pty

    slow = {
        **home,
        "ZISHU_LANGUAGE_MODEL__SCRIPTED__DELAY_S": "0.2",
        "TERM": "xterm-256color",
        "COLUMNS": "100",
    }
    parent, child = pty.openpty()
    program = subprocess.Popen(
        [*ZISHU, "cli", "--user", "typing"], env=slow, stdin=child, stdout=child, stderr=child, cwd=ROOT,
        start_new_session=True, preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(child)
    screen = _Screen(parent)
    screen.wait_for("怎么称呼你")
    os.write(parent, b"\r")
    screen.wait_for("你：")
    os.write(parent, "给我讲个长故事\r".encode())
    screen.wait_for("紫舒：", times=2)
    time.sleep(0.6)
    os.write(parent, b"\x03")
    screen.wait_for("被打断了")
    os.write(parent, b"/mood\r")
    screen.wait_for("愉快")
    os.write(parent, b"/nonsense\r")
    screen.wait_for("/nonsense 这个命令")
    os.write(parent, b"/quit\r")
    screen.wait_for("回头见")
    assert program.wait(timeout=30) == 0
    os.close(parent)
    assert _stored(home, "typing")[-1]["state"] == "interrupted"


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Screen:
    """What a program wrote to its pseudo-terminal so far."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.text = ""

    def wait_for(self, words: str, *, times: int = 1, seconds: float = 60) -> None:
        import select

        deadline = time.monotonic() + seconds
        while self.text.count(words) < times:
            left = deadline - time.monotonic()
            assert left > 0, f"{words!r} never appeared in:\n{self.text}"
            if select.select([self._descriptor], [], [], left)[0]:
                self.text += os.read(self._descriptor, 65536).decode(errors="replace")
