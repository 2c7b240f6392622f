"""The language model of LLaVA-1.5 as `LlamaForCausalLM`: it talks as before and sees nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from adapters.models.convert.templates import TEMPLATES
from domain.errors import BadConfiguration

# Where the eyes lie, and where the language model does: as published, and as transformers 5 saves it.
_EYES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")
_LANGUAGE = (
    ("model.language_model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
)


def native_config(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the language model.

    Raises:
        BadConfiguration: It is no Llama.
    """
    text = dict(keys.get("text_config", {}))
    if text.get("model_type", "llama") != "llama":
        raise BadConfiguration(
            f"The language model of this LLaVA is a {text['model_type']}, not a Llama.",
            "Convert llava-hf/llava-1.5-7b-hf.",
        )
    return {**text, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def native_tensors(name: str, tensor: Tensor, keys: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a tensor of the original becomes: nothing, if it belongs to the eyes."""
    if name.startswith(_EYES):
        return
    for old, new in _LANGUAGE:
        if name.startswith(old):
            yield new + name.removeprefix(old), tensor
            return
    yield name, tensor


def native_tokenizer(folder: Path, keys: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with Vicuna's template: the published one expects lists of words and pictures."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.chat_template = TEMPLATES["vicuna"]
    return tokenizer
