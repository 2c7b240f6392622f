"""Baichuan2-7B as `LlamaForCausalLM`: query, key and value come apart, and the output layer is normalised once.

Source: `modeling_baichuan.py`, `generation_utils.py` and the section on migrating inference in the README of
github.com/baichuan-inc/Baichuan2. The 13B model has ALiBi in place of rotary positions and is no Llama.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from adapters.models.convert.sentencepiece_model import sentence_pieces
from adapters.models.convert.templates import baichuan2
from domain.errors import BadConfiguration

# Numbers of the tokens that open a turn, as `generation_config.json` has them where it says nothing else.
_USER, _ASSISTANT = 195, 196
_LAYERS_OF_13B = 40
_WORDS_OF_THE_FIRST = 64000


def native_config(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of `LlamaForCausalLM`.

    Raises:
        BadConfiguration: It is a Baichuan 1, or the 13B model.
    """
    if keys["vocab_size"] == _WORDS_OF_THE_FIRST:
        raise BadConfiguration("This is a Baichuan 1, not a Baichuan 2.", "Convert baichuan-inc/Baichuan2-7B-Chat.")
    if keys["num_hidden_layers"] == _LAYERS_OF_13B or keys.get("tie_word_embeddings"):
        raise BadConfiguration(
            "This is the 13B model, which has ALiBi and cannot become a Llama.",
            "Convert baichuan-inc/Baichuan2-7B-Chat.",
        )
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": keys["vocab_size"],
        "hidden_size": keys["hidden_size"],
        "intermediate_size": keys["intermediate_size"],
        "num_hidden_layers": keys["num_hidden_layers"],
        "num_attention_heads": keys["num_attention_heads"],
        "num_key_value_heads": keys["num_attention_heads"],
        "rms_norm_eps": keys["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "max_position_embeddings": _context(keys),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "pad_token_id": keys.get("pad_token_id", 0),
        "bos_token_id": keys.get("bos_token_id", 1),
        "eos_token_id": keys.get("eos_token_id", 2),
    }


def native_tensors(name: str, tensor: Tensor, keys: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a tensor of the original becomes."""
    if name.endswith("self_attn.W_pack.weight"):
        for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace("W_pack", f"{letter}_proj"), rows
    elif name == "lm_head.weight":
        yield name, normalize(tensor)  # the original does so, in this precision, when it first answers
    elif not name.endswith("rotary_emb.inv_freq"):  # follows from the configuration
        yield name, tensor


def native_tokenizer(folder: Path, keys: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer; the marks of the turns are ordinary pieces, which become special ones.

    Raises:
        BadConfiguration: The folder has no SentencePiece model, or one without these pieces.
    """
    generation = _generation(folder)
    user = generation.get("user_token_id", _USER)
    assistant = generation.get("assistant_token_id", _ASSISTANT)
    found = sentence_pieces(folder / "tokenizer.model")
    if max(user, assistant) >= len(found.pieces):
        raise BadConfiguration(
            f"The tokenizer in {folder} has {len(found.pieces)} pieces and none of the number {max(user, assistant)}.",
            "Download tokenizer.model and generation_config.json again.",
        )
    marks = [found.pieces[number] for number in (user, assistant)]
    found.tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=found.tokenizer,
        unk_token=found.pieces[0],
        pad_token=found.pieces[keys.get("pad_token_id", 0)],
        eos_token=found.pieces[keys.get("eos_token_id", 2)],
        additional_special_tokens=marks,
        chat_template=baichuan2(*marks),
        model_max_length=_context(keys),
        clean_up_tokenization_spaces=False,
    )


def _context(keys: dict[str, Any]) -> int:
    return int(keys.get("max_position_embeddings") or keys["model_max_length"])


def _generation(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    try:
        keys: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise BadConfiguration(f"{path} cannot be read: {error}.", "Download it again.") from error
    return keys
