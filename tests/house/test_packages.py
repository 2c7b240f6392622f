"""What is installed is what lies in the folders, under names that nobody else takes."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_no_other_distribution_owns_our_names() -> None:
    owners = packages_distributions()
    assert {name: owners.get(name, []) for name in PACKAGES if set(owners.get(name, [])) - {"zishu-sensei"}} == {}


def test_every_package_is_installed_and_type_checked() -> None:
    tools = PROJECT["tool"]
    assert sorted(tools["setuptools"]["packages"]["find"]["include"]) == [f"{name}*" for name in PACKAGES]
    assert sorted(tools["mypy"]["files"]) == PACKAGES


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    held = set(ZipFile(wheel).namelist())
    files = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert sorted(files - held) == []
    assert {Path(name).name for name in held} >= {"LICENSE", "NOTICE"}
    assert {name.split("/")[0] for name in held} - set(PACKAGES) == {"zishu_sensei-0.1.0.dist-info"}


def test_the_constraints_fit_any_machine() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert [line for line in pins if re.match(r"nvidia|cuda|triton", line)] == []


def test_everything_asked_for_is_constrained() -> None:
    def key(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {key(line.split("==")[0]) for line in lines}
    extras = PROJECT["project"]["optional-dependencies"].values()
    asked = [line for lines in (PROJECT["project"]["dependencies"], *extras) for line in lines]
    names = {key(re.split(r"[^\w.-]", line)[0]) for line in asked} - {"zishu-sensei", "setuptools"}
    assert sorted(names - pinned) == []


@pytest.mark.slow
def test_transformers_is_not_led_astray_by_the_speech_libraries() -> None:
    pytest.importorskip("transformers")
    program = "import adapters; from transformers import PreTrainedModel, ProcessorMixin"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
