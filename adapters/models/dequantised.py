"""A GGUF file turned once into safetensors, which load in seconds where the GGUF loader needs minutes."""

import shutil
import tempfile
from pathlib import Path

from domain.errors import BackendUnavailable


def dequantised(gguf: Path, folder: Path) -> Path:
    """Return `folder` holding the model and tokenizer of a GGUF file in bf16, writing it on the first call.

    The folder appears whole or not at all: a killed conversion leaves nothing that a later call would take for it.

    Args:
        gguf: The quantised model; its architecture must be one that transformers can read from GGUF.
        folder: Where the result lies in the cache; about 540 MB for Gemma 3 270M.

    Raises:
        BackendUnavailable: transformers or gguf is missing, the file cannot be read, or the disk is full.
    """
    if (folder / "model.safetensors").exists():
        return folder
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils.quantization_config import GgufConfig
    except ImportError as error:
        raise BackendUnavailable(
            f"Converting {gguf.name} needs '{error.name}', which is not installed.",
            "Run: pip install -e '.[transformers]'",
        ) from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        # without `dequantize` the saved config would claim to be GGUF still, and refuse to be written
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(**where).save_pretrained(unfinished)
        unfinished.rename(folder)
    except (OSError, ValueError) as error:
        if (folder / "model.safetensors").exists():  # another process was faster
            return folder
        raise BackendUnavailable(
            f"{gguf.name} could not be converted to safetensors: {error}.",
            f"Check that the file is whole and that {folder.parent} has 1 GB free, then try again.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder
