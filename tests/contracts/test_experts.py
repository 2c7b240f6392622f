"""What every shelf of experts owes to the router; and what a folder must hold to be one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters import plugins
from adapters.experts import folders
from adapters.experts.folders import ADAPTER, CARD, PACKAGED, ROUTING, ExpertFolders
from domain.errors import BackendUnavailable, BadConfiguration, BadInput, NotFound, StoreUnavailable
from domain.ports import Experts
from domain.routing import KnowledgeKind, OwnBackend

CARD_TEXT = """
title = "古典音乐"
tag = "MUSIC"
kind = "fact"
priority = 40

[boundaries]
in_favour = ["交响曲"]
"""
SEED = {"culture", "style", "knowledge", "security", "logic", "vision"}


def folder_with(place: Path, name: str = "music", card: str = CARD_TEXT, **files: str) -> Path:
    """A folder that may be an expert."""
    folder = place / name
    folder.mkdir(parents=True)
    (folder / CARD).write_text(card, encoding="utf-8")
    for file, content in {ROUTING: 'examples = ["贝多芬有几部交响曲"]', **files}.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content, encoding="utf-8")
    return folder


# Each makes the experts of a user's folder and the packaged ones.
BACKENDS: dict[str, Callable[[Path], Experts]] = {
    "folders": lambda own: plugins.load("experts", "folders").build(folders.Config(folder=own))
}


@pytest.fixture(params=BACKENDS)
def experts(request: pytest.FixtureRequest, tmp_path: Path) -> Experts:
    return BACKENDS[request.param](tmp_path / "experts")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "experts"


@pytest.fixture
def shelf(own: Path) -> ExpertFolders:
    return ExpertFolders(own)


def names(experts: Experts) -> list[str]:
    return [expert.name for expert in experts.all()]


def test_every_backend_is_tested_here() -> None:
    assert set(plugins.names("experts")) == set(BACKENDS)


def test_the_six_experts_of_the_seed_are_there_by_priority_and_name(experts: Experts) -> None:
    found = experts.all()
    assert {expert.name for expert in found} == SEED
    assert [(-expert.priority, expert.name) for expert in found] == sorted(
        (-each.priority, each.name) for each in found
    )
    assert len({expert.tag for expert in found}) == len({expert.title for expert in found}) == len(SEED)
    assert experts.refused() == {}


def test_packaged_experts_have_the_bands_of_their_kind_enough_examples_and_boundaries(experts: Experts) -> None:
    for expert in experts.all():
        assert expert.temperature == expert.kind.temperature
        assert len(set(expert.examples)) >= 60
        assert expert.boundaries.in_favour
        assert expert.boundaries.against
    kinds = {expert.name: expert.kind for expert in experts.all()}
    assert (kinds["culture"], kinds["style"], kinds["knowledge"]) == tuple(KnowledgeKind)
    assert [expert.name for expert in experts.all() if expert.pinned] == ["culture"]


def test_asked_again_without_a_change_the_very_same_experts_come_back(experts: Experts) -> None:
    assert experts.all() is experts.all()


def test_a_folder_plugs_in_and_out_while_the_program_runs(shelf: ExpertFolders, own: Path) -> None:
    assert "music" not in names(shelf)
    folder = folder_with(own)
    assert names(shelf)[0] == "music"
    (folder / ROUTING).write_text('examples = ["莫扎特写过多少歌剧", "肖邦的夜曲有几首"]', encoding="utf-8")
    assert len(shelf.all()[0].examples) == 2
    assert shelf.all()[0].adapter is None
    (folder / ADAPTER).mkdir()
    (folder / ADAPTER / "adapter_config.json").write_text("{}")
    assert "safetensors" in shelf.refused()["music"], "half an adapter is none"
    (folder / ADAPTER / "adapter_model.safetensors").write_bytes(b"")
    assert shelf.all()[0].adapter == folder / ADAPTER
    shutil.rmtree(folder)
    assert "music" not in names(shelf)
    assert shelf.refused() == {}


def test_the_users_folder_shadows_a_packaged_expert_by_name(shelf: ExpertFolders, own: Path) -> None:
    folder_with(own, "logic", CARD_TEXT.replace("MUSIC", "LOGIC"))
    assert next(expert for expert in shelf.all() if expert.name == "logic").title == "古典音乐"
    assert set(names(shelf)) == SEED


def test_all_that_a_card_says_arrives(shelf: ExpertFolders, own: Path) -> None:
    card = """
title = "看图"
tag = "EYES_2"
kind = "core"
temperature = [0.2, 0.9]
precision = "int8"
priority = -3
pinned = true
base = "starter"
[backend]
use = "openai_compatible"
base_url = "http://127.0.0.1:9/v1"
model = "llava"
[boundaries]
in_favour = ["图"]
against = ["歌"]
"""
    folder = folder_with(own, "eyes", card)
    eyes = next(expert for expert in shelf.all() if expert.name == "eyes")
    assert (eyes.tag, eyes.kind, eyes.temperature, eyes.precision) == ("EYES_2", KnowledgeKind.CORE, (0.2, 0.9), "int8")
    assert (eyes.priority, eyes.pinned, eyes.base, eyes.folder) == (-3, True, "starter", folder)
    assert eyes.backend == OwnBackend("openai_compatible", {"base_url": "http://127.0.0.1:9/v1", "model": "llava"})
    assert eyes.boundaries.found("图里的歌") == ("图", "歌")
    assert eyes.speaks_itself


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("tag", "tga"), "tga"),
        (('kind = "fact"', 'kind = "wisdom"'), "kind"),
        (("MUSIC", "music"), "tag"),
        (("MUSIC", "BASE"), "BASE"),
        (("priority = 40", 'priority = "high"'), "priority"),
        (("priority = 40", "temperature = [0.9, 0.1]"), "lowest"),
        (("priority = 40", "temperature = [0.9]"), "temperature"),
        (("priority = 40", 'precision = "int3"'), "precision"),
        (("in_favour", "in_favor"), "in_favor"),
        (("[boundaries]", '[backend]\nuse = "gpt9"\n[boundaries]'), "gpt9"),
        (("[boundaries]", "[boundaries"), "cannot be read"),
        (('title = "古典音乐"', ""), "title"),
    ],
)
def test_a_wrong_card_is_refused_with_the_reason_and_the_rest_go_on(
    shelf: ExpertFolders, own: Path, change: tuple[str, str], named: str
) -> None:
    folder_with(own, card=CARD_TEXT.replace(*change))
    assert named in shelf.refused()["music"]
    assert str(own) in shelf.refused()["music"]
    assert set(names(shelf)) == SEED


@pytest.mark.parametrize("content", ["examples = []\nmore = 1", "examples = 3", 'examples = [""]', "\x00", "examples"])
def test_wrong_routing_examples_are_refused_too(shelf: ExpertFolders, own: Path, content: str) -> None:
    folder_with(own, **{ROUTING: content})
    assert ROUTING in shelf.refused()["music"]


def test_bytes_that_are_no_text_and_a_folder_without_a_card_are_refused(shelf: ExpertFolders, own: Path) -> None:
    (folder_with(own) / CARD).write_bytes(b"\xff\xfe")
    (own / "empty").mkdir()
    assert set(shelf.refused()) == {"music", "empty"}


def test_of_two_experts_with_one_tag_the_newcomer_is_refused(shelf: ExpertFolders, own: Path) -> None:
    folder_with(own, card=CARD_TEXT.replace("MUSIC", "ANIME"))
    assert "culture" in shelf.refused()["music"]
    assert set(names(shelf)) == SEED
    shutil.rmtree(own)
    folder_with(own, "alpha")
    folder_with(own, "beta")
    assert names(shelf)[0] == "alpha"
    assert "'alpha'" in shelf.refused()["beta"]


@pytest.mark.parametrize("name", ["Music", "base", "care", "音乐", "9lives", "a" * 40])
def test_a_folder_whose_name_cannot_be_an_experts_is_refused(shelf: ExpertFolders, own: Path, name: str) -> None:
    folder_with(own, name)
    assert list(shelf.refused()) == [name]


def test_hidden_folders_and_loose_files_are_passed_over(shelf: ExpertFolders, own: Path) -> None:
    folder_with(own, ".music.123")
    (own / "notes.txt").write_text("?")
    assert (set(names(shelf)), shelf.refused()) == (SEED, {})


def test_adding_copies_a_checked_folder_and_removing_takes_it_away(shelf: ExpertFolders, own: Path, tmp_path: Path):
    source = folder_with(tmp_path / "elsewhere")
    added = shelf.add(source)
    assert (added.name, added.folder) == ("music", own / "music")
    assert names(shelf)[0] == "music"
    assert source.exists()
    with pytest.raises(BadConfiguration, match="already"):
        shelf.add(source)
    shelf.remove("music")
    assert set(names(shelf)) == SEED
    assert list(own.iterdir()) == []


def test_what_cannot_be_used_is_not_added_and_leaves_nothing_behind(
    shelf: ExpertFolders, own: Path, tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    linked = folder_with(place, "linked", CARD_TEXT.replace("MUSIC", "LINKED"))
    (linked / "weights").symlink_to("/etc/passwd")
    wrong = [
        folder_with(place, "typo", CARD_TEXT.replace("tag", "tga")),
        folder_with(place, "twin", CARD_TEXT.replace("MUSIC", "ANIME")),
        folder_with(place, "own", CARD_TEXT + '[backend]\nuse = "scripted"\nrepliez = ["好"]\n'),
        linked,
        place / "nowhere",
    ]
    for source in wrong:
        with pytest.raises((BadConfiguration, BackendUnavailable)):
            shelf.add(source)
    assert not own.exists() or not list(own.iterdir())


def test_a_disk_that_refuses_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="/proc/zishu"):
        ExpertFolders(Path("/proc/zishu")).add(folder_with(tmp_path / "elsewhere"))


def test_a_packaged_expert_is_not_removed_and_an_unknown_one_is_named(shelf: ExpertFolders, own: Path) -> None:
    with pytest.raises(BadInput, match="comes with the program"):
        shelf.remove("culture")
    for name in ("nobody", "../music", "", "."):
        with pytest.raises(NotFound):
            shelf.remove(name)
    assert (PACKAGED / "culture" / CARD).is_file()


def test_a_broken_expert_can_be_removed(shelf: ExpertFolders, own: Path) -> None:
    folder_with(own, card="broken")
    shelf.remove("music")
    assert shelf.refused() == {}


def test_a_copy_of_every_packaged_expert_would_be_accepted(shelf: ExpertFolders) -> None:
    for name in SEED:
        assert shelf.check(PACKAGED / name).name == name


def test_a_file_of_statistics_is_noticed_like_any_other_change(shelf: ExpertFolders, own: Path) -> None:
    folder = folder_with(own)
    before = shelf.all()
    (folder / "statistics-hashed-1.json").write_text(json.dumps({}))
    assert shelf.all() == before
    assert shelf.all() is not before
