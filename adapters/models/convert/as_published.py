"""A model that transformers knows, whose makers published its weights as a pickle: only the file changes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def native_config(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration as it is, without pointers to code."""
    return {key: value for key, value in keys.items() if key not in ("auto_map", "_name_or_path")}


def native_tensors(name: str, tensor: Tensor, keys: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensor; old checkpoints also hold the rotary frequencies, which follow from the configuration."""
    if not name.endswith("rotary_emb.inv_freq"):
        yield name, tensor


def native_tokenizer(folder: Path, keys: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer that comes with it."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tokenizer
