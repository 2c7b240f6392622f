"""Whether a model fits into memory, told before anything is read: a CPU without memory kills the program wordlessly."""

import json
from math import prod
from pathlib import Path

import psutil
import torch

from domain.errors import BackendUnavailable

# Beyond its weights a model takes room for activations and the key-value cache.
_ROOM = 1.2
# Bytes that a weight takes in llama.cpp's Q4_K_M, scales included.
_Q4_BYTES = 0.6


def check_memory(name: str, folder: Path, device: str, precision: torch.dtype) -> None:
    """Refuse what does not fit.

    Raises:
        BackendUnavailable: The model is too large, or one of its files is not whole.
    """
    if _parameters(folder) * precision.itemsize * _ROOM > _free(device):
        raise too_large(name, folder, device, precision)


def too_large(name: str, folder: Path, device: str, precision: torch.dtype) -> BackendUnavailable:
    """Return the error that names what fits instead."""
    parameters, free = _parameters(folder), _free(device)
    needed = parameters * precision.itemsize * _ROOM
    in_bf16, in_q4 = free / _ROOM / torch.bfloat16.itemsize, free / _ROOM / _Q4_BYTES
    remedy = f"Here fits a model of up to {in_bf16 / 1e9:.1f} billion parameters in bf16"
    if precision is not torch.bfloat16 and parameters <= in_bf16:
        remedy += ', and so does this one: set [language_model.transformers] precision = "bf16"'
    return BackendUnavailable(
        f"The model {name} needs {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free.",
        f'{remedy}; or one of up to {in_q4 / 1e9:.1f} billion as a Q4 GGUF with [language_model] use = "llama_cpp".',
    )


def _free(device: str) -> float:
    return float(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available)


def _parameters(folder: Path) -> int:
    """Return how many parameters a folder's safetensors hold.

    Read from the headers alone (github.com/safetensors/safetensors#format): the library maps the whole file, which the
    system refuses where it is larger than the memory.
    """
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                tensors = json.loads(file.read(min(size, path.stat().st_size)))
            tensors.pop("__metadata__", None)
            end = max(tensor["data_offsets"][1] for tensor in tensors.values())
            count += sum(prod(tensor["shape"]) for tensor in tensors.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(path) from error
        if 8 + size + end != path.stat().st_size:
            raise _broken(path)
    return count


def _broken(path: Path) -> BackendUnavailable:
    return BackendUnavailable(f"{path} is not a whole safetensors file.", "Download or convert it again.")
