"""Tiny teachers as their makers published them: the inverse of each map, written from the original code alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GlmConfig, LlamaConfig, Qwen2Config

from tests import architectures
from tests.architectures import SHAPE, random_model

WORDS = 600
State = dict[str, Tensor]
GLM = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
# Qwen-7B and Baichuan 2 have as many heads of keys as of queries.
FULL = SHAPE | {"num_key_value_heads": SHAPE["num_attention_heads"]}


def original_chatglm3(native: State, folder: Path) -> State:
    state = {
        "transformer.embedding.word_embeddings.weight": native["model.embed_tokens.weight"],
        "transformer.rotary_pos_emb.inv_freq": torch.ones(2),
        "transformer.encoder.final_layernorm.weight": native["model.norm.weight"],
        "transformer.output_layer.weight": native["lm_head.weight"],
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        theirs, ours = f"transformer.encoder.layers.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            state[f"{theirs}self_attention.query_key_value.{kind}"] = torch.cat(
                [native[f"{ours}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            )
        state[f"{theirs}self_attention.dense.weight"] = native[f"{ours}self_attn.o_proj.weight"]
        state[f"{theirs}mlp.dense_h_to_4h.weight"] = native[f"{ours}mlp.gate_up_proj.weight"]
        state[f"{theirs}mlp.dense_4h_to_h.weight"] = native[f"{ours}mlp.down_proj.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"{theirs}{norm}.weight"] = native[f"{ours}{norm}.weight"]
    architectures.sentencepiece_model(folder / "tokenizer.model")
    keys = {
        "model_type": "chatglm", "padded_vocab_size": WORDS, "hidden_size": 32, "ffn_hidden_size": 64, "num_layers": 2,
        "num_attention_heads": 4, "multi_query_group_num": 2, "kv_channels": 8, "layernorm_epsilon": 1e-5,
        "seq_length": 2048, "multi_query_attention": True, "add_bias_linear": False, "add_qkv_bias": True,
        "rmsnorm": True, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False,
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"}, "torch_dtype": "float16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(keys))
    return state


def original_qwen1(native: State, folder: Path) -> State:
    state = {
        "transformer.wte.weight": native["model.embed_tokens.weight"],
        "transformer.ln_f.weight": native["model.norm.weight"],
        "lm_head.weight": native["lm_head.weight"],
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        theirs, ours = f"transformer.h.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            state[f"{theirs}attn.c_attn.{kind}"] = torch.cat(
                [native[f"{ours}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            )
        state[f"{theirs}attn.c_proj.weight"] = native[f"{ours}self_attn.o_proj.weight"]
        state[f"{theirs}mlp.w1.weight"] = native[f"{ours}mlp.up_proj.weight"]
        state[f"{theirs}mlp.w2.weight"] = native[f"{ours}mlp.gate_proj.weight"]
        state[f"{theirs}mlp.c_proj.weight"] = native[f"{ours}mlp.down_proj.weight"]
        state[f"{theirs}ln_1.weight"] = native[f"{ours}input_layernorm.weight"]
        state[f"{theirs}ln_2.weight"] = native[f"{ours}post_attention_layernorm.weight"]
    architectures.tiktoken_file(folder / "qwen.tiktoken")
    keys = {
        "model_type": "qwen", "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0,
        "seq_length": 2048, "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True, "kv_channels": 8,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(keys))
    return state


def original_baichuan2(native: State, folder: Path) -> State:
    state = {name: tensor for name, tensor in native.items() if "self_attn" not in name}
    for layer in range(SHAPE["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn."
        state[f"{attention}W_pack.weight"] = torch.cat([native[f"{attention}{x}_proj.weight"] for x in "qkv"])
        state[f"{attention}o_proj.weight"] = native[f"{attention}o_proj.weight"]
        state[f"{attention}rotary_emb.inv_freq"] = torch.ones(4)
    architectures.sentencepiece_model(folder / "tokenizer.model", add_dummy_prefix=False)
    keys = {
        "model_type": "baichuan", "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(keys))
    return state


Original = Callable[[State, Path], State]
TEACHERS: dict[str, tuple[Any, Original]] = {
    "chatglm3": (
        GlmConfig(**SHAPE, vocab_size=WORDS, head_dim=8, rope_parameters=GLM, rms_norm_eps=1e-5, eos_token_id=2),
        original_chatglm3,
    ),
    "qwen1": (Qwen2Config(**FULL, vocab_size=WORDS, rms_norm_eps=1e-6), original_qwen1),
    "baichuan2": (LlamaConfig(**FULL, vocab_size=WORDS, rms_norm_eps=1e-6), original_baichuan2),
}


def native(teacher: str) -> torch.nn.Module:
    model = random_model(TEACHERS[teacher][0])
    if teacher == "baichuan2":
        # what the original computes with: its output layer normalised, whatever lies in the file
        model.lm_head.weight.data = torch.nn.functional.normalize(model.lm_head.weight.data)
    return model


def published(teacher: str, folder: Path, *, state: State | None = None) -> Path:
    """Write a tiny teacher as its makers would have, and return its folder."""
    folder.mkdir()
    original = TEACHERS[teacher][1]((state or random_model(TEACHERS[teacher][0]).state_dict()), folder)
    save_file(original, folder / "model.safetensors")
    return folder


def changed(folder: Path, change: Callable[[State], object]) -> Path:
    """Let a function change the published tensors."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    return folder


def pickle_only(folder: Path, **more: object) -> Path:
    """Publish the weights as a pickle instead."""
    torch.save(load_file(folder / "model.safetensors") | more, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder
