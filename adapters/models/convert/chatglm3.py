"""ChatGLM3-6B as `GlmForCausalLM`: the same network under other names, bit for bit.

Source: `modeling_chatglm.py` and `tokenization_chatglm.py` of huggingface.co/zai-org/chatglm3-6b.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.models.convert.sentencepiece_model import sentence_pieces
from adapters.models.convert.templates import TEMPLATES
from domain.errors import BadConfiguration

# They follow the pieces of the SentencePiece model, in this order.
_MARKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_BLOCK = {
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
}
_OUTER = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}


def native_config(keys: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of `GlmForCausalLM`.

    Raises:
        BadConfiguration: It is another ChatGLM, with parts that this class lacks.
    """
    fixed = {
        "multi_query_attention": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "rmsnorm": True,
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": False,
    }
    for key, value in fixed.items():
        if keys.get(key, value) != value:
            raise BadConfiguration(f"This is no ChatGLM3: its {key} is {keys[key]}.", "Convert zai-org/chatglm3-6b.")
    theta = 10000.0 * keys.get("rope_ratio", 1)
    words = keys["padded_vocab_size"]
    return {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": words,
        "hidden_size": keys["hidden_size"],
        "intermediate_size": keys["ffn_hidden_size"],
        "num_hidden_layers": keys["num_layers"],
        "num_attention_heads": keys["num_attention_heads"],
        "num_key_value_heads": keys["multi_query_group_num"],
        "head_dim": keys["kv_channels"],
        "attention_bias": True,
        "rms_norm_eps": keys["layernorm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5},
        "max_position_embeddings": keys["seq_length"],
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }


def native_tensors(name: str, tensor: Tensor, keys: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield what a tensor of the original becomes; a ValueError where it has none of this name."""
    if name in _OUTER:
        yield _OUTER[name], tensor
        return
    if name == "transformer.rotary_pos_emb.inv_freq":  # follows from the configuration
        return
    start, _, rest = name.partition("encoder.layers.")
    layer, _, part = rest.partition(".")
    if start != "transformer." or not layer.isdigit():
        raise ValueError(f"a ChatGLM3 has no tensor {name}")
    if part in _BLOCK:
        yield f"model.layers.{layer}.{_BLOCK[part]}", tensor
        return
    module, _, kind = part.rpartition(".")
    if module != "self_attention.query_key_value":
        raise ValueError(f"a ChatGLM3 has no tensor {name}")
    queries = keys["num_attention_heads"] * keys["kv_channels"]
    group = keys["multi_query_group_num"] * keys["kv_channels"]
    for letter, rows in zip("qkv", tensor.tensor_split((queries, queries + group)), strict=True):
        yield f"model.layers.{layer}.self_attn.{letter}_proj.{kind}", rows


def native_tokenizer(folder: Path, keys: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with the marks that the original kept in code.

    Raises:
        BadConfiguration: The folder has no SentencePiece model: a GLM-4 has a tiktoken file of the same name.
    """
    tokenizer = sentence_pieces(folder / "tokenizer.model").tokenizer
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in (*_MARKS, *_ROLES)])
    begin = [(mark, tokenizer.token_to_id(mark)) for mark in ("[gMASK]", "sop")]
    tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] sop $A", pair="[gMASK] sop $A $B", special_tokens=begin
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",  # noqa: S106  a piece, no password
        pad_token="<unk>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        additional_special_tokens=[*_MARKS, *_ROLES],
        chat_template=TEMPLATES["chatglm3"],
        model_max_length=keys["seq_length"],
        clean_up_tokenization_spaces=False,
    )
