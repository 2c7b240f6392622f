"""Writes a LoRA adapter of the peft library as the GGUF that llama.cpp reads; needs numpy and gguf, no torch."""

import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from adapters.data_folder import flush_folder
from adapters.models.formats import Gguf, refuse_pickle
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
# Families whose converter leaves the rows of q and k where they are; Llama's reorders them.
_ARCHITECTURES = {"gemma3", "qwen2", "qwen3"}
_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight$")
_PLAIN = {"bias": "none", "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}


def lora_gguf(folder: Path, base: Gguf, cache_dir: Path) -> Path:
    """Return the GGUF of a peft adapter, written on the first call; another adapter gets another file.

    Args:
        folder: Holds `adapter_model.safetensors` and `adapter_config.json`.
        base: The header of the model that the adapter is for.
        cache_dir: The file goes to `adapters/` in it.

    Raises:
        BadConfiguration: The adapter is damaged, incomplete, for another model, or of a kind that llama.cpp lacks.
        BackendUnavailable: The file cannot be written.
    """
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    refuse_pickle(weights)
    refuse_pickle(settings)
    content, description = weights.read_bytes(), settings.read_bytes()
    written = cache_dir / "adapters" / f"{sha256(content + description).hexdigest()}.gguf"
    if written.is_file():
        return written
    try:
        config = json.loads(description)
        alpha = _alpha(config)
        pairs = _pairs(_tensors(content), config, base)
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise BadConfiguration(
            f"The adapter in {folder} cannot be used with this model: {error}.",
            'Choose an adapter that was trained on it, or set adapter = "" for none.',
        ) from error
    try:
        _write(written, base.architecture, alpha, pairs)
    except OSError as error:
        raise BackendUnavailable(
            f"The adapter cannot be written to {written.parent}: {error.strerror or error}.",
            "Free some space there, or choose another folder: ZISHU_CACHE_DIR=/path zishu …",
        ) from error
    return written


def _alpha(config: Mapping[str, Any]) -> float:
    """Return the alpha that gives llama.cpp, which scales by alpha / rank, the scale that peft uses."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"it is no LoRA but {config.get('peft_type')}")
    for key, plain in _PLAIN.items():
        if config.get(key) not in (plain, None):
            raise ValueError(f"llama.cpp has nothing for {key} = {config[key]!r}")
    alpha, rank = float(config["lora_alpha"]), int(config["r"])
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def _tensors(content: bytes) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of a safetensors file, which is a length, a table in JSON and raw little-endian numbers.

    Source: https://github.com/huggingface/safetensors#format.
    """
    (size,) = struct.unpack_from("<Q", content)
    if size > len(content) - 8:
        raise ValueError("its file is cut short")
    table: dict[str, Any] = json.loads(content[8 : 8 + size])
    table.pop("__metadata__", None)
    data = memoryview(content)[8 + size :]
    for name, entry in table.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(data):
            raise ValueError(f"its file is cut short: {name} ends at byte {end:,} of {len(data):,}")
        yield name, _numbers(data[start:end], entry["dtype"]).reshape(entry["shape"])


def _numbers(data: memoryview, dtype: str) -> Array:
    match dtype:
        case "F16":
            return np.frombuffer(data, "<f2").astype(np.float32)
        case "F32":
            return np.frombuffer(data, "<f4").astype(np.float32)
        case "BF16":  # the upper half of a float32
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"it holds numbers of the kind {dtype}")


def _pairs(
    tensors: Iterator[tuple[str, Array]], config: Mapping[str, Any], base: Gguf
) -> dict[str, tuple[Array, Array]]:
    """Return A and B by the name of the base tensor they change, after checking that all are there and fit."""
    if base.architecture not in _ARCHITECTURES:
        raise ValueError(f"adapters for the architecture {base.architecture!r} cannot be converted")
    halves: dict[str, dict[str, Array]] = {}
    for name, values in tensors:
        match = _NAME.search(name)
        if not match or match[2] not in _MODULES:
            raise ValueError(f"it has a tensor {name} that llama.cpp has nothing for")
        with np.errstate(over="ignore"):
            if not np.isfinite(values.astype(np.float16)).all():
                raise ValueError(f"its tensor {name} holds numbers that are not finite in fp16")
        halves.setdefault(f"blk.{match[1]}.{_MODULES[match[2]]}.weight", {})[match[3]] = values
    wanted = {f"blk.{layer}.{module}.weight" for layer in range(base.layers) for module in _modules(config)}
    if set(halves) != wanted:
        odd = ", ".join(sorted(wanted ^ set(halves))[:3])
        raise ValueError(f"it should change {len(wanted)} tensors and changes {len(halves)}; look at {odd}")
    return {name: _pair(name, half, int(config["r"]), base.shapes.get(name)) for name, half in halves.items()}


def _modules(config: Mapping[str, Any]) -> set[str]:
    """Return the layers that the adapter says to change."""
    targets = config["target_modules"]
    if not isinstance(targets, list) or not targets:
        raise ValueError(f"its target_modules are {targets!r}, not a list of names")
    return {_MODULES[name] for name in _MODULES for target in targets if f".{name}".endswith(f".{target}")}


def _pair(name: str, half: Mapping[str, Array], rank: int, shape: tuple[int, ...] | None) -> tuple[Array, Array]:
    if half.keys() != {"A", "B"}:
        raise ValueError(f"for {name} only the half {'/'.join(half)} is there")
    a, b = half["A"], half["B"]
    if shape is None or len(shape) != 2 or a.shape != (rank, shape[0]) or b.shape != (shape[1], rank):
        raise ValueError(f"its shapes {a.shape} and {b.shape} do not fit {name}, which is {shape}")
    return a, b


def _write(path: Path, architecture: str, alpha: float, pairs: Mapping[str, tuple[Array, Array]]) -> None:
    """Write the file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    writer = GGUFWriter(unfinished, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
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
