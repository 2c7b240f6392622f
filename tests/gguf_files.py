"""Small GGUF models and LoRA adapters made on the spot; the models say random bytes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from numpy.typing import NDArray

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_WIDTH, _LAYERS = 32, 2


def tiny_llama(path: Path, template: str | None = None) -> Path:
    """Write a random model of two layers whose tokens are single bytes."""
    draw = np.random.default_rng(0)
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    kinds = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 4, *[TokenType.BYTE] * 256, TokenType.NORMAL]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(2 * _WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for kind in kinds])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    if template:
        writer.add_chat_template(template)
    shapes = {"token_embd": (len(tokens), _WIDTH), "output": (len(tokens), _WIDTH), "output_norm": (_WIDTH,)}
    for layer in range(_LAYERS):
        square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (_WIDTH, _WIDTH))
        wide = dict.fromkeys(("ffn_gate", "ffn_up"), (2 * _WIDTH, _WIDTH))
        norms = dict.fromkeys(("attn_norm", "ffn_norm"), (_WIDTH,))
        named = square | wide | norms | {"ffn_down": (_WIDTH, 2 * _WIDTH)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in named.items()}
    for name, shape in shapes.items():
        numbers = np.ones(shape) if len(shape) == 1 else 0.3 * draw.standard_normal(shape)
        writer.add_tensor(f"{name}.weight", numbers.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Change = Callable[[dict[str, NDArray[np.float32]]], None]


def lora(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    scale: float = 0.05,
    dtype: str = "F16",
    change: Change | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write a random peft adapter for the query and down projections of a model whose shapes are given as in GGUF."""
    draw = np.random.default_rng(1)
    tensors: dict[str, NDArray[np.float32]] = {}
    for layer in range(sum(name.endswith("attn_q.weight") for name in shapes)):
        for module, name in (("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")):
            inner, outer = shapes[f"blk.{layer}.{name}.weight"]
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = draw.standard_normal((4, inner), np.float32)
            tensors[f"{key}.lora_B.weight"] = scale * draw.standard_normal((outer, 4), np.float32)
    if change:
        change(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors, dtype))
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(plain | dict(config or {})))
    return folder


def safetensors(tensors: Mapping[str, NDArray[np.float32]], dtype: str) -> bytes:
    """Return tensors as a safetensors file with numbers of one kind."""
    table, data = {}, b""
    for name, numbers in tensors.items():
        if dtype == "BF16":
            raw = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            raw = numbers.astype({"F16": "<f2", "F32": "<f4", "I8": "i1"}[dtype]).tobytes()
        table[name] = {
            "dtype": dtype,
            "shape": list(numbers.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    header = json.dumps({"__metadata__": {"format": "pt"}, **table}).encode()
    return len(header).to_bytes(8, "little") + header + data
