"""Weights in a published layout become native ones that compute the same, bit for bit, and nothing else does."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from adapters.models.convert import convert, unpickle
from adapters.models.convert.tensors import Shards, pickled, tensors
from adapters.models.manifest import is_complete, read_manifest
from adapters.models.verify import tensor_shapes
from domain.errors import BackendUnavailable, BadConfiguration
from tests import architectures
from tests.architectures import random_model
from tests.teachers import TEACHERS, WORDS, changed, native, pickle_only, published

pytestmark = pytest.mark.model

TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 300, 299]])
teachers = pytest.mark.parametrize("teacher", TEACHERS)


def logits(folder: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(TOKENS).logits


@teachers
def test_a_converted_teacher_computes_what_the_original_does_bit_for_bit(teacher: str, tmp_path: Path):
    with torch.inference_mode():
        expected = native(teacher)(TOKENS).logits
    assert convert(published(teacher, tmp_path / "published"), tmp_path / "native") == teacher
    assert torch.equal(logits(tmp_path / "native"), expected)


@teachers
@pytest.mark.parametrize("control", ["swapped", "rope"])
def test_a_wrong_map_or_a_wrong_rotation_would_be_seen(teacher: str, control: str, tmp_path: Path):
    with torch.inference_mode():
        expected = native(teacher)(TOKENS).logits
    state = random_model(TEACHERS[teacher][0]).state_dict()
    if control == "swapped":
        key, value = ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight")
        state[key], state[value] = state[value], state[key]
    convert(published(teacher, tmp_path / "published", state=state), tmp_path / "native")
    if control == "rope":
        config = tmp_path / "native" / "config.json"
        keys = json.loads(config.read_text())
        keys["rope_parameters"]["rope_theta"] = 20000.0
        config.write_text(json.dumps(keys))
    assert not torch.allclose(logits(tmp_path / "native"), expected, atol=1e-3)


def test_baichuans_output_layer_is_normalised_and_without_that_it_says_something_else(tmp_path: Path):
    state = random_model(TEACHERS["baichuan2"][0]).state_dict()
    convert(published("baichuan2", tmp_path / "published"), tmp_path / "native")
    head = load_file(tmp_path / "native" / "model.safetensors")["lm_head.weight"]
    assert torch.allclose(head.norm(dim=1), torch.ones(WORDS), atol=1e-5)
    assert not torch.allclose(head, state["lm_head.weight"], atol=1e-3)


def test_the_frequencies_of_a_longer_chatglm_follow_its_rope_ratio(tmp_path: Path):
    folder = published("chatglm3", tmp_path / "published")
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | {"rope_ratio": 50}))
    convert(folder, tmp_path / "native")
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config["rope_parameters"]["rope_theta"] == 500_000


def test_a_pickle_and_safetensors_in_shards_give_the_same_model(tmp_path: Path):
    folder = published("chatglm3", tmp_path / "published")
    convert(pickle_only(folder), tmp_path / "from pickle")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    for place, part in enumerate((names[::2], names[1::2])):
        save_file({name: state[name] for name in part}, folder / f"model-{place + 1:05}-of-00002.safetensors")
    convert(folder, tmp_path / "from shards")
    with torch.inference_mode():
        expected = native("chatglm3")(TOKENS).logits
    assert torch.equal(logits(tmp_path / "from pickle"), expected)
    assert torch.equal(logits(tmp_path / "from shards"), expected)


def test_the_precision_of_the_original_is_kept(tmp_path: Path):
    state = {name: tensor.bfloat16() for name, tensor in random_model(TEACHERS["qwen1"][0]).state_dict().items()}
    convert(published("qwen1", tmp_path / "published", state=state), tmp_path / "native")
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "native" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}
    assert json.loads((tmp_path / "native" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_pickled_llama_only_changes_its_file_and_is_given_the_template_it_lacks(tmp_path: Path):
    from transformers import AutoTokenizer

    folder = architectures.checkpoint("llama", tmp_path / "published")
    (folder / "chat_template.jinja").unlink()
    state = load_file(folder / "model.safetensors")
    pickle_only(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert convert(folder, tmp_path / "native", template="llama2") == "as_published"
    after = load_file(tmp_path / "native" / "model.safetensors")
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"},
            {"role": "user", "content": "V"}]  # fmt: skip
    rendered = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert rendered == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"


# LLaVA


def test_the_language_model_of_a_llava_says_without_a_picture_what_the_whole_does(tmp_path: Path):
    from transformers import LlavaForConditionalGeneration

    folder = architectures.llava(tmp_path / "published")
    with torch.inference_mode():
        expected = LlavaForConditionalGeneration.from_pretrained(folder).eval()(TOKENS).logits
    assert convert(folder, tmp_path / "native") == "llava"
    assert torch.equal(logits(tmp_path / "native"), expected)
    assert not any("vision" in name or "projector" in name for name in tensor_shapes(tmp_path / "native"))


@pytest.mark.parametrize("style", ["published", "saved"])
def test_both_spellings_of_a_llavas_tensors_are_known(style: str):
    from adapters.models.convert import llava

    names = {
        "published": ("language_model.model.norm.weight", "language_model.lm_head.weight", "vision_tower.x"),
        "saved": ("model.language_model.norm.weight", "lm_head.weight", "model.vision_tower.x"),
    }
    made = [name for old in names[style] for name, _ in llava.native_tensors(old, torch.ones(1), {})]
    assert made == ["model.norm.weight", "lm_head.weight"]


# Wholeness


def test_a_converted_folder_has_a_card_of_all_its_files_and_no_other_folder_is_left(tmp_path: Path):
    convert(published("qwen1", tmp_path / "published"), tmp_path / "models" / "tiny")
    folder = tmp_path / "models" / "tiny"
    assert is_complete(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.converter == "qwen1"
    assert manifest.files.keys() == {path.name for path in folder.iterdir()} - {"zishu-model.json"}
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["tiny"]


def test_progress_goes_from_nothing_to_all(tmp_path: Path):
    seen: list[tuple[int, int]] = []
    convert(published("qwen1", tmp_path / "p"), tmp_path / "n", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] > 0.8 * seen[-1][1]


@teachers
def test_a_missing_tensor_is_named_and_leaves_nothing_behind(teacher: str, tmp_path: Path):
    lost = {"chatglm3": "transformer.encoder.layers.1.mlp.dense_4h_to_h", "qwen1": "transformer.h.1.mlp.c_proj"}
    name = lost.get(teacher, "model.layers.1.mlp.down_proj") + ".weight"
    folder = changed(published(teacher, tmp_path / "published"), lambda state: state.pop(name))
    with pytest.raises(BadConfiguration, match=r"layers\.1\.mlp\.down_proj"):
        convert(folder, tmp_path / "native")
    assert not (tmp_path / "native").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".native-")]


@teachers
def test_a_tensor_that_the_layout_does_not_know_is_named(teacher: str, tmp_path: Path):
    strange = {"transformer.prefix_encoder.weight": torch.ones(2)}
    folder = changed(published(teacher, tmp_path / "published"), lambda state: state.update(strange))
    with pytest.raises(BadConfiguration, match="prefix_encoder"):
        convert(folder, tmp_path / "native")


@pytest.mark.parametrize(
    ("teacher", "keys", "named"),
    [
        ("chatglm3", {"add_bias_linear": True}, "add_bias_linear"),
        ("chatglm3", {"quantization_bit": 4}, "quantised"),
        ("chatglm3", {"kv_channels": None}, "published"),
        ("qwen1", {"rotary_pct": 0.5}, "rotary_pct"),
        ("qwen1", {"quantization_config": {"bits": 4}}, "quantised"),
        ("baichuan2", {"num_hidden_layers": 40}, "13B"),
        ("baichuan2", {"vocab_size": 64000}, "Baichuan 1"),
        ("baichuan2", {"max_position_embeddings": None}, "model_max_length"),
    ],
)
def test_a_relative_of_another_build_is_refused(teacher: str, keys: dict[str, Any], named: str, tmp_path: Path):
    folder = published(teacher, tmp_path / "published")
    config = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(BadConfiguration, match=named) as caught:
        convert(folder, tmp_path / "native")
    assert caught.value.remedy


def test_a_glm4_whose_tokenizer_only_bears_the_same_name_is_refused(tmp_path: Path):
    folder = published("chatglm3", tmp_path / "published")
    architectures.tiktoken_file(folder / "tokenizer.model")
    with pytest.raises(BadConfiguration, match="SentencePiece"):
        convert(folder, tmp_path / "native")


def test_what_needs_no_conversion_says_so(tmp_path: Path):
    folder = architectures.checkpoint("qwen3", tmp_path / "model")
    with pytest.raises(BadConfiguration, match="needs no conversion"):
        convert(folder, tmp_path / "native")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_without_a_usable_configuration_is_refused(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(BadConfiguration, match=r"config\.json"):
        convert(tmp_path, tmp_path / "native")


def test_a_disk_without_room_is_noticed_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = published("qwen1", tmp_path / "published")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(BackendUnavailable, match="free"):
        convert(folder, tmp_path / "native")
    assert not (tmp_path / "native").exists()


# Pickles


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_something_runs_nothing(how: str, tmp_path: Path):
    folder = published("qwen1", tmp_path / "published")
    sprung = tmp_path / "sprung"
    pickle_only(folder, nested={"b": Trap(sprung)})
    if how == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung), protocol=2))
    with pytest.raises(BadConfiguration, match="harm") as caught:
        convert(folder, tmp_path / "native")
    assert "safetensors" in caught.value.remedy
    assert not sprung.exists()
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize(
    "deed",
    [
        "open({target!r}, 'w')",
        "os.system('touch ' + {target!r})",
        "os.mkdir({target!r})",
        "subprocess.run(['touch', {target!r}])",
        "socket.create_connection(('127.0.0.1', 9))",
        "os.fork()",
        "os.open({target!r}, os.O_CREAT)",
    ],
)
def test_even_code_that_got_into_the_reader_could_do_nothing(deed: str, tmp_path: Path):
    """The second wall, tried alone: torch's unpickler lets no such code in."""
    target = tmp_path / "sprung"
    program = (
        f"import runpy, os, subprocess, socket\nreader = runpy.run_path({unpickle.__file__!r})\n"
        f"reader['wall_in'](1000)\ntry:\n    {deed.format(target=str(target))}\nexcept BaseException:\n    pass\n"
        "print('survived')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == unpickle.REFUSED
    assert "was tried" in done.stderr
    assert "survived" not in done.stdout
    assert not target.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_every_plain_tensor_comes_out_of_a_pickle_as_it_went_in(zipped: bool, tmp_path: Path):
    state = {
        "float": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "number": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "turned": torch.randn(4, 6).t(),
        "part": torch.arange(100)[10:20],
        "flags": torch.tensor([True, False]),
    }
    torch.save(state, tmp_path / "model.bin", _use_new_zipfile_serialization=zipped)
    got = dict(pickled(tmp_path / "model.bin"))
    assert got.keys() == state.keys()
    assert all(torch.equal(got[name], state[name]) and got[name].dtype == state[name].dtype for name in state)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": torch.ones(2).to_sparse()}])
def test_what_is_no_table_of_plain_tensors_is_refused(content: Any, tmp_path: Path):
    torch.save(content, tmp_path / "model.bin")
    with pytest.raises(BadConfiguration, match="harm"):
        list(pickled(tmp_path / "model.bin"))


def test_a_pickle_that_is_cut_short_is_damaged_not_dangerous(tmp_path: Path):
    torch.save({"a": torch.ones(1000)}, tmp_path / "model.bin")
    content = (tmp_path / "model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(content[:2000])
    with pytest.raises(BadConfiguration, match="damaged"):
        list(pickled(tmp_path / "model.bin"))


def test_who_stops_listening_ends_the_reader(tmp_path: Path):
    torch.save({f"t{n}": torch.ones(100_000) for n in range(5)}, tmp_path / "pytorch_model.bin")
    stream = tensors(tmp_path)
    assert next(stream)[0] == "t0"
    stream.close()  # waits for the process, or this test would hang


# Shards


def test_a_shard_is_cut_where_it_would_grow_too_large_and_the_index_finds_every_tensor(tmp_path: Path):
    state = {f"t{n}": torch.randn(10, 10) for n in range(7)}
    with Shards(tmp_path, shard_bytes=1000) as shards:
        for name, tensor in state.items():
            shards.add(name, tensor)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2800
    assert set(index["weight_map"].values()) == {f"model-{n:05}-of-00004.safetensors" for n in range(1, 5)}
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], state[name])


def test_a_large_tensor_costs_its_own_size_and_little_more(tmp_path: Path):
    """A 7B model must not need twice its memory: the peak of a conversion is that of its largest tensor."""
    state = {f"t{n}": torch.zeros(4_000_000) for n in range(16)}  # 16 MB each, 256 MB in all
    torch.save(state, tmp_path / "pytorch_model.bin")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom adapters.models.convert.tensors import Shards, tensors\n"
        "folder = Path(sys.argv[1])\n(folder / 'out').mkdir()\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "with Shards(folder / 'out') as shards:\n"
        "    for name, tensor in tensors(folder): shards.add(name, tensor)\n"
        "print((peak() - before) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env={"OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert int(done.stdout) < 64_000_000
    assert len(tensor_shapes(tmp_path / "out")) == 16
