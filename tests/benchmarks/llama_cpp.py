"""Our llama_cpp backend against bare xllamacpp on the same weights: python -m tests.benchmarks.llama_cpp [TABLE ...]

Prints Markdown tables: `speed`, `turns`, `crowd` and `experts`; all without a name. Gemma 3 270M Q4_K_M without the
persona's adapter, one thread, greedy. Prompts go to both engines in turn within seconds; ratios are taken within each
pair. Times are those at which pieces of text reach the listener; a piece is a token, rare characters excepted.
"""

import asyncio
import re
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import xllamacpp

from adapters.language_model.llama_cpp import Config, LlamaCpp
from adapters.models.formats import read_gguf
from adapters.models.starter import assembled
from domain.conversation import Message, Role
from domain.prompt import LAYOUTS, Prompt, Sampling, as_text
from domain.routing import Expert, KnowledgeKind
from entrypoints.settings import load_settings
from tests.gguf_files import lora

LAYOUT, LAPS, TOKENS = "turns", 5, 48
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=TOKENS)
SENTENCE = "紫舒老师是一位年轻的二次元老师，温柔、爱笑、有点小调皮，说话亲切，常带“呀”“呢”“哦”。"
# Questions that the bare starter answers at length, turn marks around them.
QUESTIONS = ("我该怎么学好数学？请一步一步地告诉我。", "我该怎么学好英语？请一步一步地告诉我。")
LINES = (
    "早上好呀，老师！",
    "我养了一只小猫。",
    "它叫年糕。",
    "今天下雨了。",
    "我有点累。",
    "晚饭吃什么好呢？",
    "周末去哪里玩？",
)
VOLATILE = tuple(f"【记得】同学在{month}月说过：他最喜欢在雨天喝桂花乌龙茶，看一会儿书。" for month in range(1, 11))


@dataclass(frozen=True)
class Reply:
    """When the pieces came, in seconds since the question, and how many tokens of the prompt the engine read."""

    times: list[float]
    read: int

    @property
    def first(self) -> float:
        return self.times[0]

    @property
    def prompt_speed(self) -> float:
        return self.read / self.first

    @property
    def decode_speed(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def read_by(server: xllamacpp.Server) -> int:
    """Return how many tokens of prompts the engine has read so far."""
    found = re.search(r"^llamacpp:prompt_tokens_total (\S+)$", server.handle_metrics(), re.MULTILINE)
    assert found
    return int(float(found[1]))


async def times_of(model: LlamaCpp, prompt: Prompt, sampling: Sampling = GREEDY, expert: str = "base") -> list[float]:
    began = perf_counter()
    async with aclosing(model.generate(prompt, expert=expert, sampling=sampling)) as pieces:
        return [perf_counter() - began async for _ in pieces]


async def ours(model: LlamaCpp, prompt: Prompt) -> Reply:
    engine = model._ready()._engine
    before = read_by(engine)
    times = await times_of(model, prompt)
    return Reply(times, read_by(engine) - before)


def bare(server: xllamacpp.Server, prompt: Prompt) -> Reply:
    times: list[float] = []

    def note(chunk: dict[str, Any]) -> None:
        if chunk["choices"][0].get("text"):
            times.append(perf_counter() - began)

    before, began = read_by(server), perf_counter()
    request = {"prompt": as_text(prompt, LAYOUTS[LAYOUT]), "max_tokens": TOKENS, "temperature": 0, "stream": True}
    server.handle_completions(request, note)
    return Reply(times, read_by(server) - before)


def bare_server(weights: str) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.n_ctx, params.n_parallel, params.verbosity = 4096, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.endpoint_metrics = True
    server = xllamacpp.Server(params)
    server.handle_metrics()
    return server


def config(**more: object) -> Config:
    return Config(adapter=None, layout=LAYOUT, threads=1, cache_dir=load_settings().cache_dir, **more)


def asked(beginning: str, words: str, size: int) -> Prompt:
    """Return a prompt that begins like no other."""
    return Prompt("同学", "紫舒老师", beginning + SENTENCE * size, words)


async def speed() -> None:
    """Compare decode and prompt speed through our whole stream with the bare engine's."""
    model, peer = LlamaCpp(config()), bare_server(str(assembled(load_settings().cache_dir)))
    await model.load()
    pairs: list[tuple[Reply, Reply]] = []
    for lap in range(LAPS + 1):
        for words in QUESTIONS:
            prompt = asked(f"《{words[4:8]}》第{lap + 1}幕。", words, 16)
            pair = await ours(model, prompt), await asyncio.to_thread(bare, peer, prompt)
            if lap:  # the first warms up
                pairs.append(pair)
    await model.close()
    print(f"Prompts of {pairs[0][0].read} tokens that no cache has seen, {TOKENS} tokens; medians of {len(pairs)}.\n")
    print("| | prompt tokens/s | decode tokens/s |\n|---|---|---|")
    for name, side in (("`llama_cpp`, our whole stream", 0), ("`xllamacpp`, bare", 1)):
        prompts = statistics.median(pair[side].prompt_speed for pair in pairs)
        print(f"| {name} | {prompts:.0f} | {statistics.median(pair[side].decode_speed for pair in pairs):.1f} |")
    prompts = statistics.median(mine.prompt_speed / theirs.prompt_speed for mine, theirs in pairs)
    decode = statistics.median(mine.decode_speed / theirs.decode_speed for mine, theirs in pairs)
    print(f"| ours / bare; goal 0.95 | {prompts:.3f} | {decode:.3f} |")


async def turns() -> None:
    """Report the first token of later turns beside a cold one, with the volatile block empty and full."""
    print("A persona of about 1,000 tokens, then 20 turns of one conversation; first token in ms, tokens read.\n")
    print("| volatile block | cold | turn 2 | turn 2 / cold; goal 1/7 | turn 10 | turn 20 |\n|---|---|---|---|---|---|")
    for title, found in (("empty", ()), ("full", VOLATILE)):
        model = LlamaCpp(config())
        await model.load()
        history, replies = tuple[Message, ...](), list[Reply]()
        await times_of(model, asked("热身。", "你好", 2))
        for turn in range(20):
            words = LINES[turn % len(LINES)]
            prompt = Prompt("同学", "紫舒老师", f"{title}。" + SENTENCE * 31, words, history=history, notes=found)
            replies.append(await ours(model, prompt))
            history = (*history, Message(Role.USER, words), Message(Role.HER, "好呀，老师知道啦，慢慢来哦。"))
        cells = [f"{1e3 * replies[turn].first:.0f} ({replies[turn].read})" for turn in (0, 1, 9, 19)]
        ratio = replies[1].first / replies[0].first
        print(f"| {title} | {cells[0]} | {cells[1]} | 1/{1 / ratio:.1f} | {cells[2]} | {cells[3]} |")
        await model.close()


async def crowd() -> None:
    """Report the throughput of several conversations at once, by how many the engine decodes side by side."""
    print(
        "Conversations at once, each with its own prompt; tokens/s of all together, prompts included, and in brackets "
        "the seconds until the last of them has its first token.\n"
    )
    print("| `batch` | 1 | 2 | 4 | 8 |\n|---|---|---|---|---|")
    for batch in (1, 2, 4, 8):
        model = LlamaCpp(config(batch=batch, context_tokens=2048))
        await model.load()
        cells = []
        await times_of(model, asked("热身。", "你好", 2))
        for many in (1, 2, 4, 8):
            prompts = [asked(f"{batch} {many} 第{number}位同学。", QUESTIONS[number % 2], 4) for number in range(many)]
            began = perf_counter()
            times = await asyncio.gather(*(times_of(model, prompt) for prompt in prompts))
            took = perf_counter() - began
            cells.append(f"{sum(map(len, times)) / took:.1f} ({max(each[0] for each in times):.1f})")
        print(f"| {batch} | {' | '.join(cells)} |")
        await model.close()


@dataclass(frozen=True)
class Two:
    """Two experts with adapters."""

    experts: tuple[Expert, ...]

    def all(self) -> tuple[Expert, ...]:
        return self.experts

    def refused(self) -> Mapping[str, str]:
        return {}


async def experts() -> None:
    """Report what it costs to stay with an expert, to switch, and to plug one in."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = read_gguf(assembled(load_settings().cache_dir)).shapes
        made = [
            Expert(name, name.upper(), name, KnowledgeKind.FACT, (0.3, 0.5), adapter=lora(Path(folder) / name, shapes))
            for name in ("acgn", "logic")
        ]
        plugged = Two(tuple(made[:1]))
        model = LlamaCpp(config(), plugged)
        await model.load()
        start = asked("专家。", LINES[0], 16)
        prompts = [start]
        for line in LINES[1:5]:
            before = prompts[-1]
            told = (Message(Role.USER, before.words), Message(Role.HER, "好呀，老师知道啦。"))
            prompts.append(replace(before, words=line, history=(*before.history, *told)))
        cold = await times_of(model, prompts[0], expert="acgn")
        same = await times_of(model, prompts[1], expert="acgn")
        other = await times_of(model, prompts[2], expert="base")
        back = await times_of(model, prompts[3], expert="acgn")
        object.__setattr__(plugged, "experts", tuple(made))
        joined = await times_of(model, prompts[4], expert="logic")
        await model.close()
    print("First token of a prompt of about 500 tokens, in ms.\n")
    print("| cold | the same expert | the base between | the expert again | one plugged in meanwhile |")
    print("|---|---|---|---|---|")
    print(f"| {' | '.join(f'{1e3 * times[0]:.0f}' for times in (cold, same, other, back, joined))} |")


TABLES = {"speed": speed, "turns": turns, "crowd": crowd, "experts": experts}


def main() -> None:
    print("Gemma 3 270M Q4_K_M, one thread.\n")
    for name in sys.argv[1:] or TABLES:
        asyncio.run(TABLES[name]())
        print()


if __name__ == "__main__":
    main()
