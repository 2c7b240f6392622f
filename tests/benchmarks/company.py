"""Eight conversations at once against one after another: python -m tests.benchmarks.company (prints a Markdown table).

The transformers engine and llama.cpp through their whole streams; every prompt is new beyond the persona. Greedy, one
thread.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from adapters.language_model import llama_cpp, transformers
from domain.ports import LanguageModel
from domain.prompt import Prompt, Sampling
from entrypoints.settings import load_settings
from tests.benchmarks.engines import HISTORY, LAYOUT, PERSONA

ROUNDS, THREADS, PEOPLE = 3, 1, 8
SAMPLING = Sampling(temperature=0, repetition_penalty=1, max_tokens=32)


@dataclass(frozen=True)
class Round:
    """What a round of replies took, and how many pieces of text came out of it."""

    seconds: float
    pieces: int
    first: float


Talk = Callable[[LanguageModel, Sequence[Prompt]], Awaitable[list[list[float]]]]


async def listen(model: LanguageModel, prompt: Prompt) -> list[float]:
    """Return when the pieces of a reply came."""
    return [perf_counter() async for _ in model.generate(prompt, expert="base", sampling=SAMPLING)]


async def one_after_another(model: LanguageModel, prompts: Sequence[Prompt]) -> list[list[float]]:
    return [await listen(model, prompt) for prompt in prompts]


async def at_once(model: LanguageModel, prompts: Sequence[Prompt]) -> list[list[float]]:
    return await asyncio.gather(*(listen(model, prompt) for prompt in prompts))


async def measured(model: LanguageModel, talk: Talk, number: int) -> Round:
    words = [f"我叫{name}，第{number}次来。我该怎么学好数学？请一步一步地告诉我。" for name in "甲乙丙丁戊己庚辛"]
    prompts = [Prompt("同学", "紫舒老师", PERSONA, line, history=HISTORY) for line in words[:PEOPLE]]
    began = perf_counter()
    times = await talk(model, prompts)
    return Round(
        max(heard[-1] for heard in times) - began,
        sum(map(len, times)),
        statistics.median(heard[0] for heard in times) - began,
    )


async def rounds(model: LanguageModel) -> dict[str, list[Round]]:
    """Return what both ways took, in turn."""
    await model.load()
    await measured(model, at_once, 0)  # warms up, and reads the persona
    taken: dict[str, list[Round]] = {"one after another": [], "at once": []}
    for number in range(ROUNDS):
        for name, talk in (("one after another", one_after_another), ("at once", at_once)):
            taken[name].append(await measured(model, talk, 2 * number + 1 + (name == "at once")))
    await model.close()
    return taken


async def main() -> None:
    cache = load_settings().cache_dir
    shared = {"adapter": None, "layout": LAYOUT, "threads": THREADS, "cache_dir": cache, "batch": PEOPLE}
    engines: dict[str, LanguageModel] = {
        "`transformers`, bf16": transformers.build(transformers.Config(**shared, lookup_tokens=0)),
        "`llama_cpp`, Q4_K_M": llama_cpp.build(llama_cpp.Config(**shared)),
    }
    print(f"{THREADS} thread; Gemma 3 270M, {PEOPLE} conversations with one persona, {SAMPLING.max_tokens} tokens")
    print(f"greedily; medians of {ROUNDS} rounds. The goals: 3 times the throughput, and 3 times that of llama.cpp.\n")
    print(
        "| engine | conversations | pieces/s, all together | all have their answer after, s | a first piece after, s |"
    )
    print("|---|---|---|---|---|")
    speeds: dict[str, float] = {}
    for engine, model in engines.items():
        taken = await rounds(model)
        for name, some in taken.items():
            speeds[engine] = statistics.median(one.pieces / one.seconds for one in some)
            ended, first = (statistics.median(getattr(one, part) for one in some) for part in ("seconds", "first"))
            print(f"| {engine} | {name} | {speeds[engine]:.1f} | {ended:.1f} | {first:.2f} |")
        pairs = zip(taken["at once"], taken["one after another"], strict=True)
        ratio = statistics.median((a.pieces / a.seconds) / (b.pieces / b.seconds) for a, b in pairs)
        print(f"| {engine} | at once / one after another | {ratio:.2f} | | |")
    ours, theirs = speeds.values()  # at once came last
    print(f"| `transformers` / `llama_cpp` | at once | {ours / theirs:.2f} | | |")


if __name__ == "__main__":
    asyncio.run(main())
