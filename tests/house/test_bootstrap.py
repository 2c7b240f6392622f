"""The environment is made, kept and mended: shown on a miniature project with a real .venv and next to no downloads."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import bootstrap
from bootstrap import Project, Stopped

ROOT = Path(__file__).parents[2]
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "miniature"
version = "1"

[project.scripts]
zishu = "room:main"
"""
# A build backend in 20 lines, so that pip has nothing to fetch. It dawdles while a file named `dawdle` exists.
BACKEND = """
import pathlib, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    while pathlib.Path("dawdle").exists():
        time.sleep(0.1)
    info = "miniature-1.dist-info/"
    files = {
        "room.pth": str(pathlib.Path.cwd()) + "\\n",
        info + "METADATA": "Metadata-Version: 2.1\\nName: miniature\\nVersion: 1\\nProvides-Extra: chat\\n",
        info + "WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        info + "entry_points.txt": "[console_scripts]\\nzishu = room:main\\n",
    }
    files[info + "RECORD"] = "".join(f"{name},,\\n" for name in (*files, info + "RECORD"))
    with zipfile.ZipFile(pathlib.Path(folder, "miniature-1-py3-none-any.whl"), "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return "miniature-1-py3-none-any.whl"
"""


def run(root: Path, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "bootstrap.py", *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@contextmanager
def dawdling(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A run that is in the middle of pip's work, and stays there as long as the file `dawdle` exists."""
    log = root / "build" / "bootstrap" / "install-Python-packages.log"
    log.unlink()
    (root / ".venv" / "zishu-stamp.json").unlink()
    (root / "dawdle").touch()
    command = [sys.executable, root / "bootstrap.py", "chat"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            until = time.monotonic() + 60
            while not (log.exists() and "Preparing editable metadata" in log.read_text()):
                assert time.monotonic() < until
                time.sleep(0.05)
            yield process
        finally:
            (root / "dawdle").unlink(missing_ok=True)


def hello(root: Path) -> str:
    return subprocess.run([root / ".venv" / "bin" / "zishu"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in a folder with a space and Han characters in its name, whose environment has been made."""
    folder = tmp_path_factory.mktemp("bootstrap") / "小 屋"
    (folder / "room").mkdir(parents=True)
    (folder / "room" / "__init__.py").write_text("def main():\n    print('hello from the room')\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("# none\n")
    shutil.copy(ROOT / "bootstrap.py", folder)
    made = run(folder, "chat")
    assert made.returncode == 0, made.stderr
    return folder


@contextmanager
def changed(path: Path, change: Callable[[Path], object]) -> Iterator[None]:
    """Have a file other than it should be, for a while."""
    kept = path.with_name(path.name + ".kept")
    path.rename(kept)
    try:
        if kept.is_file() and not kept.is_symlink():
            shutil.copy2(kept, path)
        change(path)
        yield
    finally:
        path.unlink(missing_ok=True)
        kept.rename(path)


def test_a_second_run_says_and_does_nothing_and_leaves_stdin_alone(root: Path) -> None:
    stamp = (root / ".venv" / "zishu-stamp.json").stat().st_mtime_ns
    both = f"'{sys.executable}' '{root}/bootstrap.py' chat && cat"
    result = subprocess.run(["sh", "-c", both], input="你好\n", capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("你好\n", "")
    assert (root / ".venv" / "zishu-stamp.json").stat().st_mtime_ns == stamp
    assert hello(root) == "hello from the room\n"


def test_what_decides_the_contents_makes_the_stamp_stale(root: Path) -> None:
    project = Project(root)
    assert project.is_ready({"chat"})
    assert not project.is_ready({"chat", "dev"})
    for name in ("pyproject.toml", "constraints.txt", "bootstrap.py"):
        with changed(root / name, lambda path: path.write_text(path.read_text() + "\n# more\n")):
            assert not project.is_ready({"chat"})
    (root / "attic").mkdir()
    (root / "attic" / "__init__.py").touch()
    assert not project.is_ready({"chat"})
    shutil.rmtree(root / "attic")
    assert project.is_ready({"chat"})


@pytest.mark.parametrize("damage", ["{", "[]", "7", '{"extras": "chat"}', ""])
def test_a_stamp_that_is_no_stamp_counts_for_nothing(root: Path, damage: str) -> None:
    with changed(root / ".venv" / "zishu-stamp.json", lambda path: path.write_text(damage)):
        assert not Project(root).is_ready({"chat"})


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("bin/python", Path.unlink, "does not run"),
        ("bin/pip", Path.unlink, "no pip"),
        ("lib/python*/site-packages/pip/__main__.py", Path.unlink, "cut short"),
        ("lib/python*/site-packages/pip/__main__.py", lambda path: path.write_text(""), "cut short"),
        ("lib/python*/site-packages/pip-*.dist-info/RECORD", Path.unlink, "cut short"),
        ("lib/python*/site-packages/pip-*.dist-info/INSTALLER", Path.unlink, "cut short"),
        ("lib/python*/site-packages/pip-*.dist-info/RECORD", lambda path: path.write_text("?"), "cut short"),
    ],
)
def test_a_damaged_environment_is_recognised(
    root: Path, file: str, damage: Callable[[Path], object], words: str
) -> None:
    project = Project(root)
    (path,) = project.venv.glob(file)
    assert bootstrap.fault(project) is None
    with changed(path, (lambda _: None) if damage is Path.unlink and path.is_symlink() else damage):
        assert words in str(bootstrap.fault(project))
    assert bootstrap.fault(project) is None


def test_what_a_killed_upgrade_leaves_behind_is_recognised(root: Path) -> None:
    (site,) = (root / ".venv").glob("lib/python*/site-packages")
    (site / "~ip").mkdir()
    assert "cut short" in str(bootstrap.fault(Project(root)))
    (site / "~ip").rmdir()


def test_an_environment_that_was_moved_is_recognised(root: Path) -> None:
    moved = root.rename(root.with_name("moved"))
    try:
        assert not Project(moved).is_ready({"chat"})
        assert "another folder" in str(bootstrap.fault(Project(moved)))
    finally:
        moved.rename(root)


@pytest.mark.slow
def test_an_environment_without_its_python_is_made_anew(root: Path) -> None:
    (root / ".venv" / "bin" / "python").unlink()
    result = run(root, "chat")
    assert result.returncode == 0, result.stderr
    assert "its Python does not run or is too old: making a new one" in result.stderr
    assert hello(root) == "hello from the room\n"
    assert not (root / ".venv.broken").exists()


@pytest.mark.slow
def test_a_run_that_was_killed_in_the_middle_is_taken_up_by_the_next(root: Path) -> None:
    with dawdling(root) as process:
        os.killpg(process.pid, signal.SIGKILL)
    assert not Project(root).is_ready({"chat"})
    result = run(root, "chat")
    assert result.returncode == 0, result.stderr
    assert hello(root) == "hello from the room\n"


@pytest.mark.slow
def test_two_runs_at_once_wait_for_each_other(root: Path) -> None:
    command = [sys.executable, root / "bootstrap.py", "chat"]
    with dawdling(root) as first, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as second:
        assert second.stderr is not None
        assert "waiting" in second.stderr.readline()
        (root / "dawdle").unlink()
        assert (first.wait(), second.wait(), second.stderr.read()) == (0, 0, "")


def test_a_failed_step_is_named_with_the_end_of_its_log_and_a_way_on(root: Path) -> None:
    script = "print('first'); print('error: No space left on device'); raise SystemExit(3)"
    with bootstrap.alone(root) as project, pytest.raises(Stopped) as stopped:
        project.run("try something", sys.executable, "-c", script)
    problem, remedy = stopped.value.args
    assert "'try something' failed" in problem
    assert str(root / "build" / "bootstrap" / "try-something.log") in problem
    assert "No space left" in problem
    assert "disk space" in remedy


@pytest.mark.parametrize("words", [["pett"], [], ["chat", "gpu"]])
def test_an_unknown_extra_is_answered_with_the_known_ones(root: Path, words: list[str]) -> None:
    result = run(root, *words)
    assert result.returncode == 1
    assert "transformers" in result.stderr


@pytest.mark.skipif(not shutil.which("apt-get"), reason="this system has no apt")
def test_without_the_right_to_install_the_line_to_run_is_given(root: Path) -> None:
    with pytest.raises(Stopped, match=r"sudo apt-get install -y --no-install-recommends zishu-none-such"):
        bootstrap.install_system(Project(root), ["zishu-none-such", "libc6"], None)


def test_nothing_is_begun_on_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bootstrap.MEGABYTES, "chat", 10**9)
    with pytest.raises(Stopped, match=r"needs \d+ MB more, and \d+ MB are free"):
        bootstrap.check_disk(Project(root), {"chat"}, is_new=True)


def interpreter(folder: Path, name: str, answer: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return str(path)


def test_the_first_python_that_speech_can_use_is_chosen(tmp_path: Path) -> None:
    old = interpreter(tmp_path, "old", "echo /opt/old/python 3 9")
    shim = interpreter(tmp_path, "shim", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    new = interpreter(tmp_path, "new", "echo /opt/new/python 3 13")
    good = interpreter(tmp_path, "good", "echo '/opt/a b/python' 3 11")
    assert bootstrap.choose_python([old, shim, new, good]) == ("/opt/a b/python", (3, 11))
    assert bootstrap.choose_python([old, shim, new]) == ("/opt/new/python", (3, 13))
    with pytest.raises(Stopped, match=r"No Python 3\.11 or newer"):
        bootstrap.choose_python([old, shim, str(tmp_path / "none")])


def test_a_build_of_torch_for_nvidia_cards_is_recognised() -> None:
    def report(*requirements: str) -> str:
        return json.dumps({"install": [{"metadata": {"name": "torch", "requires_dist": requirements}}]})

    cpu = ("filelock", "typing-extensions>=4.10.0", 'opt-einsum>=3.3; extra == "opt-einsum"')
    cuda = ('cuda-toolkit[cublas,cudart]==13.0.3; platform_system == "Linux"', "nvidia-cudnn-cu13==9.20.0.48")
    assert bootstrap.cuda_packages(report(*cpu)) == []
    assert bootstrap.cuda_packages(report(*cpu, *cuda, 'triton==3.7.1; platform_system == "Linux"')) == [
        "cuda-toolkit",
        "nvidia-cudnn-cu13",
        "triton",
    ]
    assert bootstrap.cuda_packages('{"install": []}') == []


def test_every_extra_of_the_project_can_be_asked_for() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(bootstrap.EVERYTHING) == set(extras) - {"starter", "flash", "gptq"}
    assert set(bootstrap.SYSTEM_PACKAGES) | set(bootstrap.MEGABYTES) <= {*bootstrap.EVERYTHING, "torch"}
