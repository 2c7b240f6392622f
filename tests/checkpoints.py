"""Tiny random checkpoints with tokenizers made on the spot: real files of transformers, megabytes small."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|user|>", "<|her|>", "<|system|>"]
_WITH_SYSTEM = (
    "{% for m in messages %}{{ {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|her|>'}[m.role] }}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<|her|>{% endif %}"
)
_WITHOUT_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ '<|user|>' if m.role == 'user' else '<|her|>' }}{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|her|>{% endif %}"
)
TEMPLATES = {"system": _WITH_SYSTEM, "no_system": _WITHOUT_SYSTEM}
_CORPUS = [
    "你好，你是谁？我是紫舒老师，今天也要元气满满哦～",
    "考试没考好，好难过。别担心，老师陪着你。",
    "hello, how are you today?",
]


def byte_level_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer in the manner of GPT-2, Llama 3 and Qwen: pieces are bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return _finished(tokenizer, template)


def byte_fallback_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer in the manner of Llama 2 and Gemma: pieces are characters, rare ones are bytes."""
    pieces = [
        "<unk>",
        *SPECIAL,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *sorted(set("".join(_CORPUS)) - {" "}),
    ]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, "你好", "老师"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("你", "好"), ("老", "师")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in ["<unk>", *SPECIAL]])
    return _finished(tokenizer, template)


def _finished(tokenizer: Tokenizer, template: str | None) -> PreTrainedTokenizerFast:
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", begin)]
    )
    finished = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIAL[2:]
    )
    finished.chat_template = TEMPLATES[template] if template else None
    return finished


def llama(folder: Path, *, template: str | None = None, byte_level: bool = True, seed: int = 0) -> Path:
    """Write a two-layer Llama and return its folder."""
    tokenizer = byte_level_tokenizer(template) if byte_level else byte_fallback_tokenizer(template)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    return _written(LlamaForCausalLM(config), tokenizer, folder)


def gemma3(folder: Path, *, seed: int = 0) -> Path:
    """Write a two-layer Gemma 3 with a sliding window of 64 tokens and return its folder."""
    tokenizer = byte_fallback_tokenizer()
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    return _written(Gemma3ForCausalLM(config), tokenizer, folder)


def _written(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
