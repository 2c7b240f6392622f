"""Tiny checkpoints wide enough for blocks of 64 weights, trained a little so that rounding has something to harm."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from adapters.models.fidelity import calibration
from tests.checkpoints import byte_fallback_tokenizer, byte_level_tokenizer

# What the models learn by heart.
LINES = tuple(line[:16] for line in calibration()[:4])
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
_GEMMA = {"num_hidden_layers": 6, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}
# Each family: its configuration, what differs from the others, and whether its tokenizer is of bytes.
FAMILIES: dict[str, tuple[type, dict[str, Any], bool]] = {
    "llama": (LlamaConfig, {}, True),
    "llama with byte fallback": (LlamaConfig, {"tie_word_embeddings": True}, False),
    "mistral": (MistralConfig, {"sliding_window": None}, False),
    "qwen2": (Qwen2Config, {}, True),
    "qwen3": (Qwen3Config, {"head_dim": 16}, True),
    "gemma3": (Gemma3TextConfig, {**_GEMMA, "tie_word_embeddings": True}, False),
}


def trained(folder: Path, family: str = "llama", *, steps: int = 80, **keys: object) -> Path:
    """Write a model that has read a few lines of our own text, and return its folder."""
    torch.manual_seed(0)
    make, different, bytewise = FAMILIES[family]
    plain = byte_level_tokenizer() if bytewise else byte_fallback_tokenizer()
    ends = {"bos_token_id": plain.bos_token_id, "eos_token_id": plain.eos_token_id}
    config = make(**{**_SHAPE, **different, **keys}, **ends, vocab_size=len(plain) + 8)
    plain.save_pretrained(folder)
    config.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # some families read a tokenizer in a way of their own
    model = AutoModelForCausalLM.from_config(config)
    train(model, tokenizer, steps=steps, rate=3e-3)
    model.save_pretrained(folder)
    return folder


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    rate: float,
    lines: tuple[str, ...] = LINES,
) -> float:
    """Train what may be trained on some lines and return the last loss."""
    texts = [tokenizer(line, return_tensors="pt").input_ids for line in lines]
    length = max(text.shape[1] for text in texts)
    blank = torch.full((1, length), -100)
    targets = torch.cat([torch.cat((text, blank[:, text.shape[1] :]), 1) for text in texts])
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=rate)
    model.train()
    for _ in range(steps):
        logits = model(input_ids=targets.clamp(min=0)).logits[:, :-1]  # causal: what comes after a text harms nothing
        loss = cross_entropy(logits.float().flatten(0, 1), targets[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    return float(loss.detach())
