"""Tiny checkpoints wide enough for blocks of 64 weights, trained a little so that rounding has something to harm."""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapters.models.fidelity import calibration
from tests.checkpoints import byte_level_tokenizer


def trained_llama(folder: Path, *, steps: int = 60, seed: int = 0) -> Path:
    """Write a two-layer Llama of width 64 that has read a few lines of our own text, and return its folder."""
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
    )
    train(model, tokenizer, steps=steps, rate=1e-2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, *, steps: int, rate: float) -> float:
    """Train what may be trained on four lines and return the last loss."""
    tokenizer.pad_token = tokenizer.eos_token
    given = tokenizer(list(calibration()[:4]), return_tensors="pt", padding=True)
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr=rate)
    model.train()
    for _ in range(steps):
        logits = model(input_ids=given.input_ids, attention_mask=given.attention_mask).logits[:, :-1]
        loss = cross_entropy(logits.float().flatten(0, 1), given.input_ids[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    return float(loss.detach())
