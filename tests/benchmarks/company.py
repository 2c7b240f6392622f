"""Eight conversations at once against one after another: python -m tests.benchmarks.company (prints a Markdown table).

The transformers engine through its whole stream; every prompt is new beyond the persona. Greedy, one thread.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from adapters.language_model import transformers
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


Talk = Callable[[transformers.TransformersModel, Sequence[Prompt]], Awaitable[list[list[float]]]]


async def listen(model: transformers.TransformersModel, prompt: Prompt) -> list[float]:
    """Return when the pieces of a reply came."""
    return [perf_counter() async for _ in model.generate(prompt, expert="base", sampling=SAMPLING)]


async def one_after_another(model: transformers.TransformersModel, prompts: Sequence[Prompt]) -> list[list[float]]:
    return [await listen(model, prompt) for prompt in prompts]


async def at_once(model: transformers.TransformersModel, prompts: Sequence[Prompt]) -> list[list[float]]:
    return await asyncio.gather(*(listen(model, prompt) for prompt in prompts))


async def measured(model: transformers.TransformersModel, talk: Talk, number: int) -> Round:
    words = [f"我叫{name}，第{number}次来。我该怎么学好数学？请一步一步地告诉我。" for name in "甲乙丙丁戊己庚辛"]
    prompts = [Prompt("同学", "紫舒老师", PERSONA, line, history=HISTORY) for line in words[:PEOPLE]]
    began = perf_counter()
    times = await talk(model, prompts)
    return Round(
        max(heard[-1] for heard in times) - began,
        sum(map(len, times)),
        statistics.median(heard[0] for heard in times) - began,
    )


async def main() -> None:
    cache = load_settings().cache_dir
    config = transformers.Config(adapter=None, layout=LAYOUT, threads=THREADS, cache_dir=cache, lookup_tokens=0)
    model = transformers.TransformersModel(config)
    await model.load()
    await measured(model, at_once, 0)  # warms up, and reads the persona
    rounds: dict[str, list[Round]] = {"one after another": [], "at once": []}
    for number in range(ROUNDS):
        for name, talk in (("one after another", one_after_another), ("at once", at_once)):
            rounds[name].append(await measured(model, talk, 2 * number + 1 + (name == "at once")))
    await model.close()
    print(f"{THREADS} thread; Gemma 3 270M, {PEOPLE} conversations with one persona, {SAMPLING.max_tokens} tokens")
    print(f"greedily; medians of {ROUNDS} rounds. The goal is 3 times the throughput.\n")
    print("| conversations | pieces/s, all together | all have their answer after, s | a first piece after, s |")
    print("|---|---|---|---|")
    for name, some in rounds.items():
        speed = statistics.median(one.pieces / one.seconds for one in some)
        ended, first = (statistics.median(getattr(one, part) for one in some) for part in ("seconds", "first"))
        print(f"| {name} | {speed:.1f} | {ended:.1f} | {first:.2f} |")
    pairs = zip(rounds["at once"], rounds["one after another"], strict=True)
    ratio = statistics.median((a.pieces / a.seconds) / (b.pieces / b.seconds) for a, b in pairs)
    print(f"| at once / one after another | {ratio:.2f} | | |")


if __name__ == "__main__":
    asyncio.run(main())
