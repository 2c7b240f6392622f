"""A model of the shape of Chinese-Mistral-7B on a GPU: python -m tests.benchmarks.gpu (prints a Markdown table).

Random weights serve for speed and memory. Each precision and attention in our engine, plain `generate` on the same
model in the same minute beside it. With --tiny, a model of two small layers on whatever device there is, to see that
the program runs.
"""

import argparse
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from adapters.language_model.transformers import Config
from adapters.language_model.transformers.loading import Loaded, load
from adapters.language_model.transformers.requests import Request
from adapters.language_model.transformers.scheduling import BaseAlone, Scheduler
from adapters.models.profiles import Shelf
from domain.conversation import Message, Role
from domain.errors import ZishuError
from domain.prompt import Prompt, Sampling
from tests import checkpoints

# Drawn, not greedy: random weights would go round in circles, and the guard would end the reply.
SAMPLING = Sampling(temperature=1.0, top_p=1.0, repetition_penalty=1.0, max_tokens=64)
PERSONA = "紫舒老师是一位年轻的二次元老师，温柔、爱笑、有点小调皮，说话亲切。" * 12
KINDS = (("nf4", "sdpa"), ("int8", "sdpa"), ("bf16", "sdpa"), ("bf16", "flash_attention_2"))
ROUNDS, PEOPLE = 3, 8


@dataclass(frozen=True)
class Figures:
    """Seconds, tokens a second, and bytes of the device at most."""

    cold: float
    second_turn: float
    speed: float
    plain: float
    together: float
    peak: int


def written(folder: Path, *, tiny: bool, device: str) -> Path:
    """Write the random checkpoint; its tokenizer knows bytes, and has fewer tokens than the model has rows."""
    from transformers import MistralConfig, MistralForCausalLM

    shape = Shelf().load("chinese-mistral-7b")
    tokenizer = checkpoints.byte_level_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer) if tiny else shape.vocabulary,
        hidden_size=64 if tiny else shape.hidden,
        intermediate_size=128 if tiny else shape.intermediate,
        num_hidden_layers=2 if tiny else shape.layers,
        num_attention_heads=4 if tiny else shape.heads,
        num_key_value_heads=2 if tiny else shape.kv_heads,
        head_dim=16 if tiny else shape.head_dim,
        max_position_embeddings=4096,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = MistralForCausalLM(config)
        model.save_pretrained(folder, max_shard_size="2GB")
    finally:
        torch.set_default_dtype(torch.float32)
    tokenizer.save_pretrained(folder)
    return folder


def first_token(engine: Scheduler, prompt: Prompt) -> float:
    """Begin a reply; return the seconds until its first token."""
    began, read = perf_counter(), engine.counts.prompts
    engine.add(Request(prompt, "base", SAMPLING, lambda _: None))
    while engine.counts.prompts == read:
        engine.work()
    return perf_counter() - began


def rest(engine: Scheduler) -> float:
    """Let everybody speak to the end; return the tokens a second of all together."""
    began, said = perf_counter(), engine.counts.said_tokens
    while engine.work():
        pass
    return (engine.counts.said_tokens - said) / (perf_counter() - began)


def crowd(engine: Scheduler, lap: int) -> float:
    """Return the tokens a second of all conversations at once, prompts included."""
    for number in range(PEOPLE):
        words = f"我是第{lap}轮的第{number}个，怎么学好数学？"
        engine.add(Request(Prompt("同学", "紫舒", PERSONA, words), "base", SAMPLING, lambda _: None))
    return rest(engine)


def plain(loaded: Loaded, prompt: Prompt) -> float:
    """Return the tokens a second of `generate`, the prompt's share taken off."""
    given = torch.tensor([loaded.encoder.ids(prompt)], device=loaded.model.device)

    def seconds(tokens: int) -> float:
        began = perf_counter()
        loaded.model.generate(given, do_sample=True, min_new_tokens=tokens, max_new_tokens=tokens)
        return perf_counter() - began

    seconds(2)
    return (SAMPLING.max_tokens - 1) / (seconds(SAMPLING.max_tokens) - seconds(1))


def measured(folder: Path, precision: str, attention: str, device: str) -> Figures:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    config = Config(
        model=str(folder), adapter=None, precision=precision, attention=attention, device=device, lookup_tokens=0
    )
    loaded = load(config)
    engine = Scheduler(loaded, BaseAlone(), config)
    crowd(engine, 0)  # warms up, and reads the persona
    cold, second, speed = [], [], []
    for lap in range(ROUNDS):
        first = Prompt("同学", "紫舒", f"第{lap}幕。{PERSONA}", "我该怎么学好数学？")
        cold.append(first_token(engine, first))
        speed.append(rest(engine))
        history = (Message(Role.USER, first.words), Message(Role.HER, "一步一步来。"))
        second.append(first_token(engine, Prompt("同学", "紫舒", first.persona, "那英语呢？", history=history)))
        rest(engine)
    return Figures(
        statistics.median(cold),
        statistics.median(second),
        statistics.median(speed),
        plain(loaded, first),
        statistics.median(crowd(engine, lap) for lap in range(1, ROUNDS + 1)),
        torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, on any device")
    tiny = parser.parse_args().tiny
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not tiny:
        print("Not measured: there is no CUDA device here.")
        return
    folder = Path(tempfile.mkdtemp(prefix="zishu-gpu-"))
    try:
        written(folder, tiny=tiny, device=device)
        name = torch.cuda.get_device_name() if device == "cuda" else "CPU, a tiny model: no figure means anything"
        print(f"{name}; random weights, a prompt of about 1,000 tokens, {SAMPLING.max_tokens} tokens drawn.\n")
        print(
            "| precision, attention | first token cold, ms | on turn 2, ms | tokens/s | plain `generate`, tokens/s "
            f"| {PEOPLE} at once, tokens/s | memory at most, GB |\n|---|---|---|---|---|---|---|"
        )
        for precision, attention in KINDS:
            try:
                it = measured(folder, precision, attention, device)
            except ZishuError as error:
                print(f"| {precision}, {attention} | refused: {error.problem} {error.remedy} | | | | | |")
                continue
            print(
                f"| {precision}, {attention} | {1000 * it.cold:.0f} | {1000 * it.second_turn:.0f} | {it.speed:.1f} "
                f"| {it.plain:.1f} | {it.together:.1f} | {it.peak / 1e9:.1f} |"
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
