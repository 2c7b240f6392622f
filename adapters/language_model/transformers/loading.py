"""A model of transformers in memory: checked before it is read, sized before it is loaded, its adapter added."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from adapters.language_model.transformers import attention
from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.decoding import Model
from adapters.language_model.transformers.guard import decide, installed
from adapters.language_model.transformers.memory import check_memory, too_large
from adapters.language_model.transformers.precision import PrecisionReport, stored_form
from adapters.language_model.transformers.prompting import PromptEncoder, special_ids
from adapters.language_model.transformers.sources import adapter_folder, weights_folder
from adapters.language_model.transformers.text import Tokenizer
from adapters.language_model.transformers.weights import MADE_IN_MEMORY, made, read_weights
from domain.errors import BackendUnavailable, BadConfiguration
from domain.prompt import LAYOUTS, Layout

logger = logging.getLogger(__name__)

PERSONA = "persona"
# Forms whose linear layers are the floating-point ones that an adapter can be added into.
_MERGEABLE = ("fp32", "bf16", *MADE_IN_MEMORY)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory with what is needed to talk to it."""

    model: Model
    tokenizer: Tokenizer
    encoder: PromptEncoder
    context_tokens: int
    ends: frozenset[int]
    precision: PrecisionReport


def load(config: Config, *, merge: bool = True) -> Loaded:
    """Bring the model into memory.

    Args:
        config: What to load.
        merge: Whether the adapter may be added into the weights, where it costs nothing at run time. That happens in
            fp32 and bf16, and before int8_weight_only and int8_dynamic are made of the sum. Weights of bitsandbytes,
            GPTQ and AWQ would have to be rounded a second time: there, and everywhere without `merge`, the adapter
            stays one of peft's with the name `persona`, active.

    Raises:
        BackendUnavailable: It is not there, not whole, too large, or unknown to transformers.
        BadConfiguration: Its files are not safe to read, or do not go with the settings.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = weights_folder(config)
    adapter, trained_layout = adapter_folder(config)
    device = _device(config)
    try:
        report = decide(config, folder, device)
        _check_adaptable(report.precision, adapter, merge=merge)
        check_memory(config.model, folder, device, report.precision)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = _model(config, folder, adapter, device, report.precision, merge=merge)
    except torch.OutOfMemoryError as error:
        raise too_large(config.model, folder, device, "bf16") from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise BackendUnavailable(
            f"The model {config.model} cannot be loaded: {_first_line(error)}.",
            "Choose a model that transformers knows without code of its own, and check that its folder is whole.",
        ) from error
    logger.info("The model is held in %s: %s.", report.precision, report.reason)
    layout = _layout(config, trained_layout, tokenizer)
    trained_for = getattr(model.config.get_text_config(), "max_position_embeddings", config.context_tokens)
    ends = model.generation_config.eos_token_id
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        encoder=PromptEncoder(tokenizer, layout),
        context_tokens=min(config.context_tokens, trained_for),
        ends=special_ids(tokenizer) | frozenset(ends if isinstance(ends, list) else [ends]) - {None},
        precision=report,
    )


def _device(config: Config) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            "No CUDA device can be used here.",
            'Set [language_model.transformers] device = "cpu", or install the driver and a CUDA build of torch.',
        )
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def _check_adaptable(precision: str, adapter: Path | None, *, merge: bool) -> None:
    """Refuse an adapter beside layers that peft cannot wrap."""
    if adapter and not merge and precision == "int8_dynamic":
        raise BadConfiguration(
            "An adapter cannot stay beside weights in int8_dynamic.",
            'Set [language_model.transformers] precision = "int8_weight_only", or remove the adapters of experts.',
        )


def _model(config: Config, folder: Path, adapter: Path | None, device: str, precision: str, *, merge: bool) -> Model:
    """Return the model in its form, with its adapter."""
    capability = torch.cuda.get_device_capability() if device == "cuda" else None
    computed_by = attention.chosen(config.attention, precision, device, capability, installed)
    stored = stored_form(folder)
    model = read_weights(config.model, folder, precision, device, stored=stored, attention=computed_by)
    merged = merge and precision in _MERGEABLE
    if adapter and merged:
        model = _with_adapter(model, adapter).merge_and_unload()
    model = made(model, precision)
    return _with_adapter(model, adapter) if adapter and not merged else model


def _with_adapter(model: Model, folder: Path) -> Model:
    """Return the model with a LoRA adapter beside its weights."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # peft 0.21 asks for gradient checkpointing by a name that transformers will drop
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(model, str(folder), adapter_name=PERSONA)


def _layout(config: Config, trained: str | None, tokenizer: Tokenizer) -> Layout | None:
    """Return the layout of the prompt, or None for the model's own chat template."""
    if config.layout == "chat" and not tokenizer.chat_template:
        raise BadConfiguration(
            f"The model {config.model} has no chat template.", 'Set [language_model.transformers] layout = "script".'
        )
    if config.layout == "auto":
        return LAYOUTS.get(trained or ("chat" if tokenizer.chat_template else "script"))
    return LAYOUTS.get(config.layout)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
