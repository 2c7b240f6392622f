"""`zishu models` as a person and as a program use it, against a hub on this machine."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from adapters.models.profiles import PACKAGED, Shelf
from domain.errors import BackendUnavailable, BadConfiguration, BadInput, NotFound
from entrypoints.cli import app
from tests import architectures
from tests.hub import hub_of
from tests.local_server import serving
from tests.teachers import pickle_only, published

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing but two folders, and a terminal that is wide."""
    monkeypatch.setenv("ZISHU_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ZISHU_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def models(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments])


def data(*arguments: str, code: int = 0) -> dict[str, object]:
    result = models(*arguments, "--json")
    assert result.exit_code == code, result.output + str(result.exception)
    return json.loads(result.stdout)


def test_the_list_has_every_profile_with_its_purpose_and_state():
    rows = json.loads(models("list", "--json").stdout)
    assert [row["name"] for row in rows] == Shelf().names()
    assert all(row["memory_bytes"]["nf4"] < row["memory_bytes"]["bf16"] for row in rows)
    assert {row["state"] for row in rows if row["name"] != "starter"} == {""}
    shown = models("list").stdout
    assert all(profile.name in shown and profile.purpose in shown for profile in Shelf().all())


def test_a_model_is_shown_with_licence_note_and_memory():
    assert data("show", "chatglm3-6b")["kv_heads"] == 2
    shown = models("show", "chatglm3-6b").stdout
    for words in ("ChatGLM3-6B Model License", "ModelScope ZhipuAI/chatglm3-6b", "nf4", "no KL yet", "bit-equal"):
        assert words in shown
    assert "KL nf4 0.32" in models("show", "starter").stdout


def test_a_profile_of_the_user_shadows_ours(home: Path):
    (home / "data" / "models").mkdir(parents=True)
    ours = (PACKAGED / "qwen3-0.6b.toml").read_text(encoding="utf-8")
    (home / "data" / "models" / "qwen3-0.6b.toml").write_text(ours.replace("Qwen3-0.6B", "My-0.6B"), encoding="utf-8")
    assert data("show", "qwen3-0.6b")["title"] == "My-0.6B"


def test_an_unknown_model_is_answered_with_the_list():
    error = models("show", "gpt9").exception
    assert isinstance(error, NotFound)
    assert "qwen3-0.6b" in error.remedy


def test_a_native_model_is_fetched_verified_and_ready(home: Path):
    folder = architectures.checkpoint("qwen3", home / "published")
    with serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server:
        done = models("download", "qwen3-0.6b", "--endpoint", server.url)
        assert done.exit_code == 0, done.exception
        assert 'model = "qwen3-0.6b"' in done.stdout
        assert data("download", "qwen3-0.6b", "--endpoint", server.url)["ready"] is True
    report = data("verify", "qwen3-0.6b")
    assert report["sound"] is True
    assert report["architecture"] == "Qwen3ForCausalLM"
    assert report["template"] is True
    assert report["checked"] == len(list(folder.iterdir()))
    assert {row["name"]: row["state"] for row in json.loads(models("list", "--json").stdout)}["qwen3-0.6b"] == "ready"


def test_the_mirror_of_the_settings_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch):
    folder = architectures.checkpoint("qwen3", home / "published")
    with serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server:
        monkeypatch.setenv("ZISHU_LANGUAGE_MODEL__TRANSFORMERS__HUB", server.url)
        assert data("download", "qwen3-0.6b")["ready"] is True
        assert server.asked


def test_modelscope_is_asked_where_the_user_says_so(home: Path):
    folder = architectures.checkpoint("qwen3", home / "published")
    with serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server:
        assert data("download", "qwen3-0.6b", "--from", "modelscope", "--endpoint", server.url)["ready"] is True
        assert any(path.startswith("/api/v1/models/Qwen/Qwen3-0.6B/repo/files") for _, path, *_ in server.asked)


def test_a_pickled_teacher_is_fetched_converted_and_ready_in_two_commands(home: Path):
    folder = pickle_only(published("qwen1", home / "published"))
    with serving(hub_of(folder, "Qwen/Qwen-7B-Chat")) as server:
        fetched = data("download", "qwen-7b", "--endpoint", server.url)
    assert (fetched["ready"], fetched["next"]) == (False, "zishu models convert qwen-7b")
    assert data("convert", "qwen-7b")["converter"] == "qwen1"
    assert data("verify", "qwen-7b")["sound"] is True
    state = load_file(home / "cache" / "models" / "qwen-7b" / "model.safetensors")
    assert "model.layers.1.self_attn.q_proj.weight" in state


def test_a_folder_is_converted_and_verified_as_well_as_a_name(home: Path):
    folder = published("baichuan2", home / "published")
    done = models("convert", str(folder))
    assert done.exit_code == 0, done.exception
    target = home / "cache" / "models" / "published"
    assert str(target) in done.stdout
    assert data("verify", str(target))["sound"] is True
    assert data("convert", str(folder), "--to", str(home / "elsewhere"))["folder"] == str(home / "elsewhere")


def test_nothing_to_convert_says_what_to_do():
    error = models("convert", "qwen-7b").exception
    assert isinstance(error, BadInput)
    assert error.remedy == "Run: zishu models download qwen-7b"
    assert isinstance(models("convert", "/nowhere").exception, BadInput)


def test_the_starter_is_not_fetched_from_a_hub():
    error = models("download", "starter").exception
    assert isinstance(error, BadInput)
    assert "starter" in error.remedy


def test_a_hub_that_is_away_ends_with_a_remedy():
    error = models("download", "qwen3-0.6b", "--endpoint", "http://127.0.0.1:9").exception
    assert isinstance(error, BackendUnavailable)
    assert "modelscope" in error.remedy


@pytest.mark.parametrize("harm", ["flipped bit", "lost file", "pickle", "lost tensor", "wrong tokenizer", "cut"])
def test_verify_finds_what_is_wrong_with_a_model(harm: str, home: Path):
    folder = architectures.checkpoint("qwen3", home / "published")
    with serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server:
        models("download", "qwen3-0.6b", "--endpoint", server.url)
    here = home / "cache" / "models" / "qwen3-0.6b"
    weights = here / "model.safetensors"
    content = weights.read_bytes()
    match harm:
        case "flipped bit":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            os.truncate(weights, len(content) - 100)
        case "lost file":
            (here / "tokenizer.json").unlink()
        case "pickle":
            torch.save({}, here / "extra.bin")
        case "lost tensor":
            from safetensors.torch import save_file

            state = load_file(weights)
            state.pop("model.norm.weight")
            save_file(state, weights)
        case "wrong tokenizer":
            text = (here / "tokenizer.json").read_text(encoding="utf-8")
            (here / "tokenizer.json").write_text(text.replace('"ByteLevel"', '"Whitespace"', 1), encoding="utf-8")
    report = data("verify", "qwen3-0.6b", code=1)
    assert report["sound"] is False
    assert report["problems"]
    named = {"flipped bit": "checksum", "lost file": "missing", "pickle": "extra.bin", "lost tensor": "model.norm",
             "wrong tokenizer": "tokenizer", "cut": "bytes"}  # fmt: skip
    assert named[harm] in str(report["problems"])


def test_verify_of_a_folder_that_is_not_there_is_an_error():
    assert isinstance(models("verify", "/nowhere").exception, BadConfiguration)


def test_every_command_teaches_how_it_is_used():
    for command in ("list", "show", "download", "convert", "verify"):
        assert command in models("--help").stdout
        assert "--json" in models(command, "--help").stdout
    assert (
        "isolated" in models("convert", "--help").stdout or "process of its own" in models("convert", "--help").stdout
    )


def test_a_card_names_where_each_file_is_from(home: Path):
    folder = architectures.checkpoint("qwen3", home / "published")
    with serving(hub_of(folder, "Qwen/Qwen3-0.6B")) as server:
        models("download", "qwen3-0.6b", "--endpoint", server.url)
    card = json.loads((home / "cache" / "models" / "qwen3-0.6b" / "zishu-model.json").read_text())
    assert card["source"] == server.url
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card["files"]["model.safetensors"]["sha256"] == weights
