"""Qwen-7B, the first generation, as `Qwen2ForCausalLM`: the same network within its context, bit for bit.

Beyond `seq_length` the original stretches its rotary embedding and scales its attention; Qwen 2 does neither, so the
context ends there. Source: `modeling_qwen.py` and `tokenization_qwen.py` of huggingface.co/Qwen/Qwen-7B-Chat.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.models.convert.templates import TEMPLATES
from adapters.models.convert.tiktoken_ranks import tiktoken_tokenizer
from domain.errors import BadConfiguration

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# They follow the ranks of the vocabulary, in this order.
_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_BLOCK = {
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "mlp.w1.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.gate_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
    "ln_1.weight": "input_layernorm.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
}
_OUTER = {
    "transformer.wte.weight": "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}


def native_config(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of `Qwen2ForCausalLM`.

    Raises:
        BadConfiguration: It has parts that this class lacks.
    """
    fixed = {"no_bias": True, "rotary_pct": 1.0, "tie_word_embeddings": False}
    for key, value in fixed.items():
        if keys.get(key, value) != value:
            raise BadConfiguration(f"This is no Qwen-7B: its {key} is {keys[key]}.", "Convert Qwen/Qwen-7B-Chat.")
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": keys["vocab_size"],
        "hidden_size": keys["hidden_size"],
        "intermediate_size": keys["intermediate_size"] // 2,
        "num_hidden_layers": keys["num_hidden_layers"],
        "num_attention_heads": keys["num_attention_heads"],
        "num_key_value_heads": keys["num_attention_heads"],
        "rms_norm_eps": keys["layer_norm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(keys["rotary_emb_base"])},
        "max_position_embeddings": keys["seq_length"],
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }


def native_tensors(name: str, tensor: Tensor, keys: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a tensor of the original becomes; a ValueError where it has none of this name."""
    if name in _OUTER:
        yield _OUTER[name], tensor
        return
    if name.endswith(("rotary_emb.inv_freq", "attn.masked_bias")):  # follow from the configuration
        return
    start, _, rest = name.partition("h.")
    layer, _, part = rest.partition(".")
    if start != "transformer." or not layer.isdigit():
        raise ValueError(f"a Qwen-7B has no tensor {name}")
    if part in _BLOCK:
        yield f"model.layers.{layer}.{_BLOCK[part]}", tensor
        return
    module, _, kind = part.rpartition(".")
    if module != "attn.c_attn":
        raise ValueError(f"a Qwen-7B has no tensor {name}")
    for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
        yield f"model.layers.{layer}.self_attn.{letter}_proj.{kind}", rows


def native_tokenizer(folder: Path, keys: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with the marks that the original kept in code.

    Raises:
        BadConfiguration: The folder has no `qwen.tiktoken`, or a damaged one.
    """
    tokenizer = tiktoken_tokenizer(folder / "qwen.tiktoken", _WORDS)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in _MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106  a mark, no password
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=TEMPLATES["chatml"],
        model_max_length=keys["seq_length"],
        clean_up_tokenization_spaces=False,
    )
