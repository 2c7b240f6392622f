import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from adapters.models.formats import Gguf, read_gguf
from adapters.models.lora_gguf import lora_gguf
from domain.errors import BackendUnavailable, BadConfiguration
from tests.gguf_files import Change, lora, tiny_llama

Tensors = dict[str, NDArray[np.float32]]
SHAPES = {
    f"blk.{layer}.{name}.weight": shape
    for layer in range(3)
    for name, shape in (("attn_q", (16, 24)), ("ffn_down", (32, 16)))
}
BASE = Gguf({"general.architecture": "gemma3", "gemma3.block_count": 3}, SHAPES, ())


def converted(path: Path) -> tuple[dict[str, NDArray[np.float16]], float]:
    reader = GGUFReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["general.architecture"].contents() in {"gemma3", "llama"}
    return {tensor.name: tensor.data for tensor in reader.tensors}, reader.fields["adapter.lora.alpha"].contents()


@pytest.mark.parametrize("dtype", ["F16", "F32", "BF16"])
def test_every_tensor_arrives_under_its_llama_cpp_name(tmp_path: Path, dtype: str) -> None:
    kept: Tensors = {}
    folder = lora(tmp_path / "lora", SHAPES, dtype=dtype, change=kept.update)
    tensors, alpha = converted(lora_gguf(folder, BASE, tmp_path))
    assert alpha == 8
    assert len(tensors) == 12
    lora(tmp_path / "same", SHAPES, change=kept.update)
    for letter in "AB":
        original = kept[f"base_model.model.model.layers.2.mlp.down_proj.lora_{letter}.weight"]
        assert np.allclose(tensors[f"blk.2.ffn_down.weight.lora_{letter.lower()}"], original, rtol=0.01, atol=0.001)


def test_rank_stabilised_adapters_keep_their_scale(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora", SHAPES, config={"use_rslora": True})
    _, alpha = converted(lora_gguf(folder, BASE, tmp_path))
    assert alpha / 4 == 8 / 4**0.5


def test_an_adapter_is_converted_once_and_another_one_anew(tmp_path: Path) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    first = lora_gguf(folder, BASE, tmp_path)
    state = first.stat()
    assert lora_gguf(folder, BASE, tmp_path).stat() == state
    assert lora_gguf(lora(folder, SHAPES, scale=0.1), BASE, tmp_path) != first
    assert lora_gguf(lora(folder, SHAPES, config={"lora_alpha": 16}), BASE, tmp_path) != first
    assert {path.suffix for path in first.parent.iterdir()} == {".gguf"}


def without(name: str) -> Change:
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if name in key] and None


def with_value(value: float) -> Change:
    return lambda tensors: next(iter(tensors.values())).__setitem__((0, 0), value)


def with_extra(name: str) -> Change:
    return lambda tensors: tensors.update({name: np.ones((4, 16), np.float32)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("layers.1.self_attn.q_proj.lora_B"), "half B is missing"),
        (without("layers.2."), "changes 4; look at model.layers.2"),
        (without("down_proj"), "changes 3; look at model.layers.0.mlp.down_proj"),
        (with_extra("base_model.model.lm_head.lora_A.weight"), "lm_head"),
        (with_extra("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"), "layers.3"),
        (with_extra("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"), "magnitude"),
        (with_value(float("nan")), "not finite"),
        (with_value(float("inf")), "not finite"),
        (with_value(1e6), "not finite in fp16"),
    ],
)
def test_incomplete_foreign_and_broken_tensors_are_refused(tmp_path: Path, change: Change, reason: str) -> None:
    folder = lora(tmp_path / "lora", SHAPES, dtype="F32", change=change)
    with pytest.raises(BadConfiguration, match=reason):
        lora_gguf(folder, BASE, tmp_path)
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "no LoRA"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"r": 8}, "shapes"),
        ({"r": None}, "cannot be used"),
        ({"target_modules": "all-linear"}, "target_modules"),
    ],
)
def test_kinds_of_adapters_that_llama_cpp_lacks_are_refused(
    tmp_path: Path, config: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadConfiguration, match=reason):
        lora_gguf(lora(tmp_path / "lora", SHAPES, config=config), BASE, tmp_path)


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    wider = {name: (inner * 2, outer) for name, (inner, outer) in SHAPES.items()}
    with pytest.raises(BadConfiguration, match="shapes do not fit"):
        lora_gguf(lora(tmp_path / "lora", wider), BASE, tmp_path)
    glm = Gguf({"general.architecture": "glm4", "glm4.block_count": 3}, SHAPES, ())
    with pytest.raises(BadConfiguration, match="architecture 'glm4'"):
        lora_gguf(lora(tmp_path / "lora", SHAPES), glm, tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, 3000])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    folder = lora(tmp_path / "lora", SHAPES)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(BadConfiguration, match="cannot be used"):
        lora_gguf(folder, BASE, tmp_path)


def test_numbers_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="kind I8"):
        lora_gguf(lora(tmp_path / "lora", SHAPES, dtype="I8"), BASE, tmp_path)


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"no file .*adapter_model"):
        lora_gguf(tmp_path, BASE, tmp_path)


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(BackendUnavailable, match="cannot be written"):
        lora_gguf(lora(tmp_path / "lora", SHAPES), BASE, tmp_path / "cache")


def test_converting_needs_no_torch(tmp_path: Path) -> None:
    lora(tmp_path / "lora", SHAPES)
    program = (
        "import sys; from pathlib import Path; from adapters.models.formats import Gguf;"
        "from adapters.models.lora_gguf import lora_gguf;"
        f"base = Gguf({dict(BASE.metadata)!r}, {SHAPES!r}, ());"
        "lora_gguf(Path(sys.argv[1]) / 'lora', base, Path(sys.argv[1]));"
        "assert not {'torch', 'safetensors', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], env=os.environ, cwd=Path.cwd(), check=False)
    assert done.returncode == 0


@pytest.mark.model
def test_the_safetensors_library_reads_the_same(tmp_path: Path) -> None:
    numpy_safetensors = pytest.importorskip("safetensors.numpy")
    folder = lora(tmp_path / "lora", SHAPES)
    theirs = numpy_safetensors.load_file(folder / "adapter_model.safetensors")
    ours, _ = converted(lora_gguf(folder, BASE, tmp_path))
    for layer in range(3):
        key = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        assert np.array_equal(theirs[f"{key}.lora_A.weight"], ours[f"blk.{layer}.attn_q.weight.lora_a"])
        assert np.array_equal(theirs[f"{key}.lora_B.weight"], ours[f"blk.{layer}.attn_q.weight.lora_b"])


def test_the_rotated_halves_of_each_head_of_a_llama_are_interleaved(tmp_path: Path) -> None:
    header = read_gguf(tiny_llama(tmp_path / "tiny.gguf"))
    kept: Tensors = {}
    ours, _ = converted(lora_gguf(lora(tmp_path / "lora", header.shapes, change=kept.update), header, tmp_path))
    theirs = kept["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    heads, half = 2, 8
    for head in range(heads):
        for place in range(half):
            for side in range(2):
                row = ours["blk.1.attn_q.weight.lora_b"][2 * half * head + 2 * place + side]
                assert np.allclose(row, theirs[2 * half * head + half * side + place], atol=1e-3)
    down = kept["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    assert np.allclose(ours["blk.1.ffn_down.weight.lora_b"], down, atol=1e-3)
