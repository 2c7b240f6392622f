"""Tiny random checkpoints of every architecture that a profile names: real files of transformers, kilobytes small."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma3TextConfig,
    GlmConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.checkpoints import byte_fallback_tokenizer, byte_level_tokenizer

# What every tiny model has in common; the vocabulary is the tokenizer's, padded as real ones are.
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
_CORPUS = (
    "你好，你是谁？我是紫舒老师，今天也要元气满满哦～",
    "考试没考好，好难过。别担心，老师陪着你。",
    "墨墨是一只喜欢在窗台上晒太阳的小乌龟，它慢慢地爬，慢慢地想。",
    "Hello, how are you today?  I am fine, thank you. 1 + 1 = 2, 3.14159",
    "进击的巨人里艾伦的动机是什么？二次元、番剧、漫画、轻小说。",
)


def _mistral(words: int) -> PreTrainedConfig:
    return MistralConfig(**SHAPE, vocab_size=words, sliding_window=None)


def _llama(words: int) -> PreTrainedConfig:
    return LlamaConfig(**SHAPE, vocab_size=words)


def _glm(words: int) -> PreTrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    return GlmConfig(**SHAPE, vocab_size=words, head_dim=8, rope_parameters=rope, eos_token_id=2)


def _qwen2(words: int) -> PreTrainedConfig:
    return Qwen2Config(**SHAPE, vocab_size=words)


def _qwen3(words: int) -> PreTrainedConfig:
    return Qwen3Config(**SHAPE, vocab_size=words, head_dim=16)


def _gemma3(words: int) -> PreTrainedConfig:
    layers = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(**SHAPE, vocab_size=words, head_dim=16, sliding_window=64, layer_types=layers)


ARCHITECTURES: dict[str, Callable[[int], PreTrainedConfig]] = {
    "mistral": _mistral,
    "llama": _llama,
    "glm": _glm,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
}


def random_model(config: PreTrainedConfig, seed: int = 0) -> torch.nn.Module:
    """Return a causal language model whose every weight is random, norms and biases too."""
    torch.manual_seed(seed)
    return _shaken(AutoModelForCausalLM.from_config(config))


def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def checkpoint(architecture: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a model of an architecture, with tokenizer and template, and return its folder."""
    made = byte_fallback_tokenizer if architecture in ("llama", "mistral", "gemma3_text") else byte_level_tokenizer
    tokenizer = made("system")
    random_model(ARCHITECTURES[architecture](len(tokenizer) + 3), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """Write a LLaVA with eyes of one layer, and return its folder."""
    tokenizer = byte_fallback_tokenizer("system")
    eyes = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=eyes,
        text_config=_llama(len(tokenizer) + 3),
        image_token_index=len(tokenizer),
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    _shaken(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sentencepiece_model(file: Path, **options: Any) -> Path:
    """Train a SentencePiece model like those of ChatGLM3 and Baichuan 2: BPE, bytes for what is rare."""
    import sentencepiece

    written = BytesIO()
    settings = {
        "vocab_size": 500,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 2,
        **options,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(_CORPUS * 20), model_writer=written, **settings)
    file.write_bytes(written.getvalue())
    return file


def tiktoken_file(file: Path) -> dict[bytes, int]:
    """Write a vocabulary in the manner of `qwen.tiktoken`, its merges learnt from a few lines, and return its ranks."""
    from base64 import b64encode
    from collections import Counter
    from itertools import pairwise

    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in line.encode()] for line in _CORPUS]
    for rank in range(256, 420):
        pairs = Counter(pair for word in words for pair in pairwise(word))
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        ranks[left + right] = rank
        for word in words:
            place = 0
            while place < len(word) - 1:
                if (word[place], word[place + 1]) == (left, right):
                    word[place : place + 2] = [left + right]
                place += 1
    file.write_bytes(b"".join(b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return ranks
