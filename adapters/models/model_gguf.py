"""Writes a model of transformers as the GGUF that llama.cpp reads: Llama, Mistral, Qwen2, Qwen3 and Gemma 3."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray
from safetensors import safe_open

from adapters.models.gguf_vocabulary import Tokenizer, write_vocabulary
from domain.errors import BackendUnavailable

Progress = Callable[[int, int], None]
Array = NDArray[np.float32]

_ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma3_text": MODEL_ARCH.GEMMA3,
}
_KINDS = {
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
}
# llama.cpp knows the sliding layers and their rope of Gemma 3 by heart (src/llama-model.cpp): every sixth looks at all.
_GEMMA_PERIOD, _GEMMA_LOCAL_THETA = 6, 10_000.0


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor under its name in GGUF, and how its numbers are stored."""

    name: str
    read: Callable[[], Array]
    shape: tuple[int, ...]
    kind: GGMLQuantizationType


def write_gguf(source: Path, target: Path, config: Any, tokenizer: Tokenizer, kind: str, progress: Progress) -> None:  # noqa: ANN401
    """Write a folder of safetensors as one GGUF file, tensor after tensor.

    Matrices go into `kind`, those whose rows it cannot cut into blocks into f16, vectors into f32.

    Args:
        source: The folder.
        target: The file.
        config: The configuration of transformers.
        tokenizer: The tokenizer of transformers.
        kind: `q8_0` or `f16`.
        progress: Called with tensors done and tensors in all.

    Raises:
        BackendUnavailable: The architecture or the tokenizer cannot be written.
    """
    architecture = supported(config)
    writer = GGUFWriter(target, MODEL_NAMES[architecture])
    _write_shape(writer, config)
    writer.add_file_type(_KINDS[kind][1])
    writer.add_quantization_version(2)
    write_vocabulary(writer, tokenizer, config.vocab_size)
    tensors = list(_tensors(source, config, architecture, _KINDS[kind][0]))
    for each in tensors:
        stored = quant_shape_to_byte_shape(each.shape, each.kind) if each.kind == _KINDS["q8_0"][0] else each.shape
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(each.kind, np.uint8)
        size = int(np.prod(stored)) * np.dtype(plain).itemsize
        writer.add_tensor_info(each.name, stored, np.dtype(plain), size, raw_dtype=each.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, each in enumerate(tensors, start=1):
        writer.write_tensor_data(quantize(each.read(), each.kind))
        progress(done, len(tensors))
    writer.close()


def restored(weight: Array, kind: str) -> Array:
    """Return what is left of a matrix once it went through a kind of GGUF."""
    stored = _kind(weight.shape, _KINDS[kind][0])
    back: Array = dequantize(quantize(weight, stored), stored)
    return back.reshape(weight.shape)


def supported(config: Any) -> MODEL_ARCH:  # noqa: ANN401
    """Return the architecture in GGUF.

    Raises:
        BackendUnavailable: llama.cpp computes this model in another way than transformers, or this module cannot tell.
    """
    architecture = _ARCHITECTURES.get(config.model_type)
    if architecture is None:
        raise _refused(f"the architecture {config.model_type!r} is none of {', '.join(_ARCHITECTURES)}")
    ropes = config.rope_parameters
    for rope in ropes.values() if config.model_type == "gemma3_text" else [ropes]:
        if rope.get("rope_type", "default") != "default":
            raise _refused(f"its positions are scaled ({rope['rope_type']})")
    if config.model_type == "gemma3_text":
        _check_gemma(config)
    if getattr(config, "use_sliding_window", config.model_type == "mistral") and config.sliding_window:
        raise _refused("it has a sliding window")
    return architecture


def _check_gemma(config: Any) -> None:  # noqa: ANN401
    whole = [place % _GEMMA_PERIOD == _GEMMA_PERIOD - 1 for place in range(config.num_hidden_layers)]
    if [kind == "full_attention" for kind in config.layer_types] != whole:
        raise _refused("its sliding layers lie elsewhere than llama.cpp expects")
    if config.rope_parameters["sliding_attention"]["rope_theta"] != _GEMMA_LOCAL_THETA:
        raise _refused("the positions of its sliding layers are unusual")
    if config.query_pre_attn_scalar != config.head_dim:
        raise _refused("its queries are scaled by something else than the width of a head")


def _write_shape(writer: GGUFWriter, config: Any) -> None:  # noqa: ANN401
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ropes = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(ropes.get("full_attention", ropes)["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)


def _tensors(source: Path, config: Any, architecture: MODEL_ARCH, kind: GGMLQuantizationType) -> Iterator[_Tensor]:  # noqa: ANN401
    """Yield the tensors of a folder; their numbers are read when they are asked for."""
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no mapping
        for name, shape in sorted(shapes.items()):
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            called = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if called is None:
                raise _refused(f"GGUF has no name for its tensor {name}")
            yield _Tensor(called, _reader(path, name, config), shape, _kind(shape, kind))


def _reader(path: Path, name: str, config: Any) -> Callable[[], Array]:  # noqa: ANN401
    def read() -> Array:
        with safe_open(path, "pt") as file:
            numbers: Array = file.get_tensor(name).float().numpy()
        if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
            return numbers + 1  # Gemma keeps what is to be added to one, llama.cpp the sum
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        layer = name.split(".")[-2]
        if config.model_type in ("llama", "mistral") and layer in heads:
            return _interleaved(numbers, heads[layer])
        return numbers

    return read


def _interleaved(numbers: Array, heads: int) -> Array:
    """Return rows in the order of the original Llama, in which neighbours turn together, not halves of a head.

    Source: `permute` of convert_hf_to_gguf.py in github.com/ggml-org/llama.cpp.
    """
    halves = numbers.reshape(heads, 2, numbers.shape[0] // heads // 2, *numbers.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(numbers.shape))


def _kind(shape: tuple[int, ...], kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) < 2:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if shape[-1] % 32 else kind


MODEL_NAMES = {
    MODEL_ARCH.LLAMA: "llama",
    MODEL_ARCH.QWEN2: "qwen2",
    MODEL_ARCH.QWEN3: "qwen3",
    MODEL_ARCH.GEMMA3: "gemma3",
}


def _refused(why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"This model cannot be written as GGUF: {why}.",
        "Quantise to nf4 or int8 instead, or convert with llama.cpp's convert_hf_to_gguf.py.",
    )
