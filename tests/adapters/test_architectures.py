"""Every architecture that a profile names is loaded and spoken with; a profile's name is enough to find its model."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.language_model import transformers as backend
from adapters.language_model.transformers import Config
from adapters.language_model.transformers.sources import adapter_folder, weights_folder
from adapters.models.convert import convert
from adapters.models.download import original_folder, ready_folder
from adapters.models.manifest import File, Manifest, checksum, write_manifest
from adapters.models.profiles import Shelf
from domain.errors import BackendUnavailable, BadConfiguration
from domain.prompt import Prompt, Sampling
from tests import architectures
from tests.architectures import ARCHITECTURES
from tests.hub import hub_of
from tests.local_server import serving
from tests.teachers import TEACHERS, pickle_only, published

pytestmark = pytest.mark.model

PROMPT = Prompt(user_name="同学", her_name="紫舒", persona="紫舒是温柔的老师。", words="你好，你是谁？")
SAMPLING = Sampling(temperature=1.0, max_tokens=24, seed=11)


async def said(model: str, cache: Path, *words: str) -> list[str]:
    """Load a model and return its reply to each line."""
    config = Config(model=model, adapter=None, precision="fp32", device="cpu", threads=1, cache_dir=cache)
    language_model = backend.build(config)
    try:
        replies = []
        for line in words or (PROMPT.words,):
            pieces = language_model.generate(replace(PROMPT, words=line), expert="base", sampling=SAMPLING)
            replies.append("".join([piece async for piece in pieces]))
        return replies
    finally:
        await language_model.close()


def test_no_architecture_of_a_profile_is_left_out():
    assert {profile.family for profile in Shelf().all()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_an_architecture_talks(architecture: str, tmp_path: Path):
    folder = architectures.checkpoint(architecture, tmp_path / "model")
    first, again, other = await said(str(folder), tmp_path, "你好，你是谁？", "你好，你是谁？", "再见")
    assert first
    assert "\ufffd" not in first
    assert first == again
    assert first != other


@pytest.mark.parametrize("teacher", TEACHERS)
async def test_a_converted_teacher_talks_through_its_own_template(teacher: str, tmp_path: Path):
    convert(published(teacher, tmp_path / "published"), ready_folder(tmp_path, "teacher"))
    assert (ready_folder(tmp_path, "teacher") / "chat_template.jinja").exists()
    assert all(await said("teacher", tmp_path))


async def test_a_llava_is_refused_until_its_language_model_is_taken_out_which_talks(tmp_path: Path):
    folder = architectures.llava(tmp_path / "published")
    with pytest.raises(BadConfiguration, match="pictures") as caught:
        await said(str(folder), tmp_path)
    assert f"zishu models convert {folder}" in caught.value.remedy
    convert(folder, ready_folder(tmp_path, "llava-1.5-7b"))
    assert all(await said("llava-1.5-7b", tmp_path))


# Where a model's name leads


def put(folder: Path) -> Path:
    """Make a folder complete, as a download would."""
    entries = {path.name: File(path.stat().st_size, checksum(path)) for path in folder.iterdir()}
    write_manifest(folder, Manifest("here", folder.name, "", "", entries))
    return folder


def found(model: str, cache: Path, **keys: str) -> Path:
    return weights_folder(Config(model=model, cache_dir=cache, **keys))


def test_a_name_leads_to_the_folder_that_was_downloaded_or_converted(tmp_path: Path):
    folder = put(architectures.checkpoint("qwen3", ready_folder(tmp_path, "qwen3-0.6b")))
    assert found("qwen3-0.6b", tmp_path) == folder


def test_a_model_of_the_users_own_profile_is_found_by_its_name_too(tmp_path: Path):
    folder = put(architectures.checkpoint("qwen3", ready_folder(tmp_path, "mine")))
    assert found("mine", tmp_path) == folder


def test_a_folder_that_is_not_whole_is_not_taken_for_the_model(tmp_path: Path):
    folder = put(architectures.checkpoint("qwen3", ready_folder(tmp_path, "chatglm3-6b")))
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackendUnavailable, match="not here"):
        found("chatglm3-6b", tmp_path)


@pytest.mark.parametrize("name", ["chatglm3-6b", "qwen-7b", "baichuan2-7b-chat", "llava-1.5-7b"])
def test_a_model_that_must_be_converted_says_which_commands_do_it(name: str, tmp_path: Path):
    with pytest.raises(BackendUnavailable) as caught:
        found(name, tmp_path)
    assert f"zishu models download {name}" in caught.value.remedy
    assert f"zishu models convert {name}" in caught.value.remedy
    original = original_folder(tmp_path, name)
    original.mkdir(parents=True)
    (original / "config.json").write_text("{}")
    put(original)
    with pytest.raises(BackendUnavailable) as caught:
        found(name, tmp_path)
    assert caught.value.remedy == f"Run: zishu models convert {name}"


def test_a_name_that_nothing_has_is_named_with_the_list(tmp_path: Path):
    with pytest.raises(BackendUnavailable, match="gpt9") as caught:
        found("gpt9", tmp_path)
    assert "zishu models list" in caught.value.remedy


async def test_a_native_profile_is_fetched_from_the_hub_of_the_settings_and_then_talks_without_it(tmp_path: Path):
    folder = architectures.checkpoint("qwen3", tmp_path / "published")
    with serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server:
        assert found("qwen3-0.6b", tmp_path, hub=server.url) == ready_folder(tmp_path, "qwen3-0.6b")
    assert all(await said("qwen3-0.6b", tmp_path))


@pytest.mark.parametrize("adapter", [None, "", "starter"])
def test_a_model_without_an_adapter_of_its_own_needs_no_setting(adapter: str | None, tmp_path: Path):
    assert adapter_folder(Config(model="qwen3-0.6b", adapter=adapter, cache_dir=tmp_path)) == (None, None)


def test_a_hub_with_pickles_only_is_told_apart_and_nothing_is_fetched(tmp_path: Path):
    folder = pickle_only(architectures.checkpoint("qwen3", tmp_path / "published"))
    with (
        serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server,
        pytest.raises(BadConfiguration, match="only as pickles") as caught,
    ):
        found("qwen3-0.6b", tmp_path, hub=server.url)
    assert "zishu models download qwen3-0.6b --pickles" in caught.value.remedy


def test_a_folder_with_a_pickle_and_no_safetensors_is_refused_with_the_command_that_mends_it(tmp_path: Path):
    folder = pickle_only(architectures.checkpoint("llama", tmp_path / "model"))
    with pytest.raises(BadConfiguration, match="pickled") as caught:
        found(str(folder), tmp_path)
    assert f"zishu models convert {folder}" in caught.value.remedy


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teacher_as_published_is_refused_with_the_command_that_converts_it(teacher: str, tmp_path: Path):
    folder = published(teacher, tmp_path / "published")
    with pytest.raises(BadConfiguration, match="never run here") as caught:
        found(str(folder), tmp_path)
    assert f"zishu models convert {folder}" in caught.value.remedy


def test_a_name_wins_over_a_folder_and_a_dot_says_which_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(architectures.checkpoint("llama", tmp_path / "model"), tmp_path / "chatglm3-6b")
    with pytest.raises(BackendUnavailable, match="not here"):
        found("chatglm3-6b", tmp_path / "cache")
    assert found("./chatglm3-6b", tmp_path / "cache") == Path("chatglm3-6b")


def test_every_tiny_checkpoint_is_random_in_every_tensor(tmp_path: Path):
    """Ones in a norm or zeros in a bias would let a map that loses them pass."""
    for architecture in ARCHITECTURES:
        folder = architectures.checkpoint(architecture, tmp_path / architecture)
        for name, tensor in load_file(folder / "model.safetensors").items():
            assert torch.unique(tensor).numel() > 1, name
