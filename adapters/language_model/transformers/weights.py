"""A model of transformers read from a folder of safetensors into the form that its weights are held in."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from adapters.language_model.transformers.weight_only import hold_in_int8
from domain.errors import BackendUnavailable, BadConfiguration

# The classes of transformers carry no types that say anything.
Model = Any
# The forms that are made of a model's whole weights once it is in memory, with adapters merged in before.
MADE_IN_MEMORY = ("int8_weight_only", "int8_dynamic")
# The forms that bitsandbytes makes while it reads.
_BITSANDBYTES = ("int8", "nf4")
# One says at every layer that it rounds, the other, as soon as peft imports it, that it lacks a kernel of the hub.
for _chatty in ("bitsandbytes.autograd._functions", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_chatty).setLevel(logging.ERROR)
# On a CPU bitsandbytes reads NF4 in blocks of this many weights of a row.
_NF4_BLOCK = 64


def read_weights(
    name: str, folder: Path, precision: str, device: str, *, stored: str | None = None, attention: str = "sdpa"
) -> Model:
    """Return the model, ready for `made` where its form is made in memory.

    Args:
        name: What to call it in errors.
        folder: Its safetensors and config.json.
        precision: A key of `precision.FORMS`.
        device: `cpu` or `cuda`.
        stored: The form that it is already written in, None for plain numbers.
        attention: What transformers calls the attention to use.

    Raises:
        BackendUnavailable: Weights are missing.
        BadConfiguration: It cannot be held in NF4.
    """
    settings = {} if stored else _quantisation(precision)
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32 if precision in ("fp32", "int8_dynamic") else torch.bfloat16,
        device_map=device,
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **settings,
    )
    if missing := found["missing_keys"]:
        # transformers would fill them with noise and only warn
        raise BackendUnavailable(
            f"The model {name} is not whole: {len(missing)} of its weights are missing, such as {min(missing)}.",
            "Download or convert it again.",
        )
    if precision == "nf4" and device == "cpu":
        _check_blocks(model)
    return model.eval()


def made(model: Model, precision: str) -> Model:
    """Return the model in a form that is made in memory, any other as it is; it is changed in place."""
    if precision == "int8_weight_only":
        return hold_in_int8(model)
    if precision == "int8_dynamic":
        with warnings.catch_warnings():
            # torch 2.13 still has it and says that 2.10 will not
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", "torch.quantize_per_", UserWarning)
            return torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
                model, {nn.Linear}, torch.qint8, inplace=True
            )
    return model


def _quantisation(precision: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs to hold weights as bitsandbytes does."""
    if precision not in _BITSANDBYTES:
        return {}
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }


def _check_blocks(model: Model) -> None:
    """Refuse layers that bitsandbytes would only fail at once the model is asked something."""
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit) and layer.in_features % _NF4_BLOCK:
            raise BadConfiguration(
                f"On a CPU NF4 needs layers whose width is a multiple of {_NF4_BLOCK}; {name} has {layer.in_features}.",
                'Set [language_model.transformers] precision = "int8_weight_only" or "bf16".',
            )
