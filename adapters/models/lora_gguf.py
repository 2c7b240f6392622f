"""Writes a LoRA adapter of the peft library as the GGUF that llama.cpp reads; needs numpy and gguf, no torch."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from adapters.data_folder import flush_folder
from adapters.models.formats import Gguf
from adapters.models.lora import Adapter, AdapterCard, Base, read_adapter
from domain.errors import BackendUnavailable, BadConfiguration

Array = NDArray[np.float32]

_MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Families whose converter leaves the rows of q and k where they are, and the one where it reorders them.
_ARCHITECTURES = {"gemma3", "qwen2", "qwen3", "llama"}
_REORDERED = {"llama": {"attn_q": "head_count", "attn_k": "head_count_kv"}}


def gguf_base(header: Gguf, names: frozenset[str] = frozenset()) -> Base:
    """Return what an adapter for a GGUF model has to fit.

    Args:
        header: Of the model.
        names: What the model goes by.
    """
    shapes = {}
    for layer in range(header.layers):
        for module, short in _MODULES.items():
            shape = header.shapes.get(f"blk.{layer}.{short}.weight", ())
            if len(shape) == 2:
                shapes[f"model.layers.{layer}.{module}"] = (shape[0], shape[1])
    embedding = header.shapes.get("token_embd.weight", ())
    return Base(names, shapes, embedding[1] if len(embedding) == 2 else None)


def lora_gguf(
    folder: Path, header: Gguf, cache_dir: Path, *, names: frozenset[str] = frozenset(), trained_on: str = ""
) -> Path:
    """Return the GGUF of a peft adapter, written on the first call; another adapter gets another file.

    Args:
        folder: Holds `adapter_model.safetensors` and `adapter_config.json`.
        header: That of the model that the adapter is for.
        cache_dir: The file goes to `adapters/` in it.
        names: What the model goes by.
        trained_on: The model that whoever plugged it in says it belongs to; "" where nobody says.

    Raises:
        BadConfiguration: The adapter is damaged, incomplete, for another model, or of a kind that llama.cpp lacks.
        BackendUnavailable: It cannot be read now, or the file cannot be written.
    """
    adapter = read_adapter(folder, gguf_base(header, names), trained_on=trained_on)
    written = cache_dir / "adapters" / f"{adapter.card.fingerprint}.gguf"
    if written.is_file():
        return written
    try:
        pairs = _pairs(adapter, header)
    except ValueError as error:
        raise BadConfiguration(
            f"The adapter in {folder} cannot be used with llama.cpp: {error}.",
            'Choose another adapter, or set [language_model] use = "transformers".',
        ) from error
    try:
        _write(written, header.architecture, adapter.card, pairs)
    except OSError as error:
        raise BackendUnavailable(
            f"The adapter cannot be written to {written.parent}: {error.strerror or error}.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        ) from error
    return written


def _pairs(adapter: Adapter, header: Gguf) -> dict[str, tuple[Array, Array]]:
    """Return A and B by the name of the tensor of llama.cpp that they change."""
    if header.architecture not in _ARCHITECTURES:
        raise ValueError(f"adapters for the architecture {header.architecture!r} cannot be converted")
    pairs = {}
    for layer, (a, b) in adapter.pairs.items():
        number, _, module = layer.removeprefix("model.layers.").partition(".")
        short = _MODULES[module]
        numbers = (a.numbers(), _reordered(b.numbers(), short, header))
        for half in numbers:
            with np.errstate(over="ignore"):
                if not np.isfinite(half.astype(np.float16)).all():
                    raise ValueError(f"{layer} holds numbers that are not finite in fp16")
        pairs[f"blk.{number}.{short}.weight"] = numbers
    return pairs


def _reordered(b: Array, short: str, header: Gguf) -> Array:
    """Return B with the rows as llama.cpp has them: for Llama, the halves of each rotated head interleaved.

    Source: `LlamaModel.permute` in convert_hf_to_gguf.py, github.com/ggml-org/llama.cpp.
    """
    key = _REORDERED.get(header.architecture, {}).get(short)
    if key is None:
        return b
    attention = f"{header.architecture}.attention"
    heads = int(header.metadata.get(f"{attention}.{key}", header.metadata[f"{attention}.head_count"]))
    return b.reshape(heads, 2, len(b) // heads // 2, -1).swapaxes(1, 2).reshape(b.shape)


def _write(path: Path, architecture: str, card: AdapterCard, pairs: Mapping[str, tuple[Array, Array]]) -> None:
    """Write the file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    writer = GGUFWriter(unfinished, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", card.scale * card.rank)  # llama.cpp divides it by the rank
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", a.astype(np.float16))
        writer.add_tensor(f"{name}.lora_b", b.astype(np.float16))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.flush()
        writer.close()
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    flush_folder(path.parent)
