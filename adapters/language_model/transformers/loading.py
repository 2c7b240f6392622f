"""A model of transformers in memory: checked before it is read, sized before it is loaded, its adapter merged in."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.decoding import Model
from adapters.language_model.transformers.memory import check_memory, too_large
from adapters.language_model.transformers.prompting import PromptEncoder, special_ids
from adapters.language_model.transformers.sources import adapter_folder, weights_folder
from adapters.language_model.transformers.text import Tokenizer
from domain.errors import BackendUnavailable, BadConfiguration
from domain.prompt import LAYOUTS, Layout


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory with what is needed to talk to it."""

    model: Model
    tokenizer: Tokenizer
    encoder: PromptEncoder
    context_tokens: int
    ends: frozenset[int]


def load(config: Config) -> Loaded:
    """Bring the model into memory.

    Raises:
        BackendUnavailable: It is not there, not whole, too large, or unknown to transformers.
        BadConfiguration: Its files are not safe to read, or do not go with the settings.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = weights_folder(config)
    adapter, trained_layout = adapter_folder(config)
    device = _device(config)
    precision = _precision(config, device)
    check_memory(config.model, folder, device, precision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = _weights(config.model, folder, device, precision)
        if adapter:
            model = _with_adapter(model, adapter)
    except torch.OutOfMemoryError as error:
        raise too_large(config.model, folder, device, precision) from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise BackendUnavailable(
            f"The model {config.model} cannot be loaded: {_first_line(error)}.",
            "Choose a model that transformers knows without code of its own, and check that its folder is whole.",
        ) from error
    layout = _layout(config, trained_layout, tokenizer)
    trained_for = getattr(model.config.get_text_config(), "max_position_embeddings", config.context_tokens)
    ends = model.generation_config.eos_token_id
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        encoder=PromptEncoder(tokenizer, layout),
        context_tokens=min(config.context_tokens, trained_for),
        ends=special_ids(tokenizer) | frozenset(ends if isinstance(ends, list) else [ends]) - {None},
    )


def _device(config: Config) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            "No CUDA device can be used here.",
            'Set [language_model.transformers] device = "cpu", or install the driver and a CUDA build of torch.',
        )
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _precision(config: Config, device: str) -> torch.dtype:
    """Return bf16 where the hardware computes in it and the settings do not ask for more; elsewhere it only costs."""
    if config.precision != "auto":
        return torch.float32 if config.precision == "fp32" else torch.bfloat16
    able = torch.cpu.get_capabilities()
    native = torch.cuda.is_bf16_supported() if device == "cuda" else able.get("avx512_bf16") or able.get("amx_bf16")
    return torch.bfloat16 if native else torch.float32


def _layout(config: Config, trained: str | None, tokenizer: Tokenizer) -> Layout | None:
    """Return the layout of the prompt, or None for the model's own chat template."""
    if config.layout == "chat" and not tokenizer.chat_template:
        raise BadConfiguration(
            f"The model {config.model} has no chat template.", 'Set [language_model.transformers] layout = "script".'
        )
    if config.layout == "auto":
        return LAYOUTS.get(trained or ("chat" if tokenizer.chat_template else "script"))
    return LAYOUTS.get(config.layout)


def _weights(name: str, folder: Path, device: str, precision: torch.dtype) -> Model:
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=precision,
        device_map=device,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := found["missing_keys"]:
        # transformers would fill them with noise and only warn
        raise BackendUnavailable(
            f"The model {name} is not whole: {len(missing)} of its weights are missing, such as {min(missing)}.",
            "Download or convert it again.",
        )
    return model


def _with_adapter(model: Model, folder: Path) -> Model:
    """Return the model with a LoRA adapter added to its weights, which then costs nothing at run time."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft 0.21 asks for gradient checkpointing by a name that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
