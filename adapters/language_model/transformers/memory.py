"""Whether a model fits into memory, told before anything is read: a CPU without memory kills the program wordlessly."""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

import psutil
import torch

from adapters.models.footprint import LINEAR_BYTES
from domain.errors import BackendUnavailable

# Beyond its weights a model takes room for activations and the key-value cache.
_ROOM = 1.2
# What a precision takes for each weight of a linear layer while it is loaded, where that is more than in the end: the
# forms of the CPU are made from whole weights.
_WHILE_LOADING = {"int8_weight_only": 2.0, "int8_dynamic": 5.0}
# Forms in which embeddings and norms are of four bytes; elsewhere they are bf16.
_WIDE = ("fp32", "int8_dynamic")
# What a weight takes in Q8_0 (32 of a byte share a scale of two), and in f16, the widest of a GGUF of ours.
_EIGHT_BITS = (34 / 32, 2.0)
# Named from the smallest loss to the greatest, for whoever must choose another.
_SMALLER = {"cuda": ("bf16", "int8", "nf4"), "cpu": ("bf16", "nf4")}


def check_memory(name: str, folder: Path, device: str, precision: str) -> None:
    """Refuse what does not fit.

    Raises:
        BackendUnavailable: The model is too large, or one of its files is not whole.
    """
    if not fits(folder, device, precision):
        raise too_large(name, folder, device, precision)


def fits(folder: Path, device: str, precision: str, *, beside: float = 0) -> bool:
    """Tell whether the free memory of a device takes the model in a precision, with what it needs to talk.

    Args:
        folder: Its safetensors.
        device: `cpu` or `cuda`.
        precision: A key of `precision.FORMS`.
        beside: Bytes that something else takes at the same time.

    Raises:
        BackendUnavailable: One of its files is not whole.
    """
    return needed_bytes(folder, precision) + beside <= _free(device)


def needed_bytes(folder: Path, precision: str) -> float:
    """Return the memory that a model takes in a precision at its peak, room for activations and caches included.

    Weights that are quantised on the disk count as they lie there; else linear layers count in the precision, and
    embeddings, the output layer and norms in bf16 or fp32: no precision but `int8_weight_only` touches the output
    layer.

    Raises:
        BackendUnavailable: One of its files is not whole.
    """
    plain = 4 if precision in _WIDE else 2
    return _sum(folder, _WHILE_LOADING.get(precision, LINEAR_BYTES[precision]), plain) * _ROOM


def disk_bytes(folder: Path, precision: str) -> float:
    """Return what a folder's weights will take on the disk in a precision; for `gguf`, with eight bits a weight.

    Raises:
        BackendUnavailable: One of its files is not whole.
    """
    return _sum(folder, *_EIGHT_BITS) if precision == "gguf" else _sum(folder, LINEAR_BYTES[precision], 2)


def _sum(folder: Path, linear: float, plain: float) -> float:
    """Add up bytes, given what a weight of a linear layer takes and what any other."""
    total = 0.0
    for name, shape, stored, kind in _tensors(folder):
        if not kind.startswith(("F", "BF")):
            total += stored
        elif len(shape) == 2 and "embed" not in name and "lm_head" not in name:
            total += prod(shape) * linear
        else:
            total += prod(shape) * plain
    return total


def too_large(name: str, folder: Path, device: str, precision: str) -> BackendUnavailable:
    """Return the error that names what fits instead."""
    free = _free(device)
    in_bf16, in_q4 = free / _ROOM / LINEAR_BYTES["bf16"], free / _ROOM / LINEAR_BYTES["gguf"]
    remedy = f"Here fits a model of up to {in_bf16 / 1e9:.1f} billion parameters in bf16"
    smaller = (each for each in _SMALLER[device] if each != precision)
    if instead := next((each for each in smaller if fits(folder, device, each)), None):
        remedy += f', and this one in {instead}: set [language_model.transformers] precision = "{instead}"'
    return BackendUnavailable(
        f"The model {name} needs {needed_bytes(folder, precision) / 1e9:.1f} GB of memory in {precision}; "
        f"{free / 1e9:.1f} GB are free.",
        f'{remedy}; or one of up to {in_q4 / 1e9:.1f} billion as a Q4 GGUF with [language_model] use = "llama_cpp".',
    )


def _free(device: str) -> float:
    return float(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available)


def _tensors(folder: Path) -> Iterator[tuple[str, tuple[int, ...], int, str]]:
    """Yield name, shape, bytes and kind of what a folder's safetensors hold.

    Read from the headers alone (github.com/safetensors/safetensors#format): the library maps the whole file, which the
    system refuses where it is larger than the memory.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(size, path.stat().st_size)))
            tensors.pop("__metadata__", None)
            ends = {name: tensor["data_offsets"] for name, tensor in tensors.items()}
            found = [
                (name, tuple(tensor["shape"]), ends[name][1] - ends[name][0], str(tensor["dtype"]))
                for name, tensor in tensors.items()
            ]
            whole = 8 + size + max(end for _, end in ends.values()) == path.stat().st_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(path) from error
        if not whole:
            raise _broken(path)
        yield from found


def _broken(path: Path) -> BackendUnavailable:
    return BackendUnavailable(f"{path} is not a whole safetensors file.", "Download or convert it again.")
