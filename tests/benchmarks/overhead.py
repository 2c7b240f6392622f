"""What our stream costs over the bare decode loop: python -m tests.benchmarks.overhead (prints a Markdown table).

The bare loop runs the model and takes the likeliest token, nothing else, with the cache of transformers. Ours goes
through the event loop, the scheduler, the detokeniser, the stop strings and the guard. Both say the same tokens, within
seconds of each other; greedy, one thread, no guessing. Meanwhile the event loop is asked every millisecond whether it
still turns.
"""

import adapters as _hides_torchaudio  # noqa: F401  # isort: skip - must come before transformers
import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from transformers import DynamicCache

from adapters.language_model import transformers
from adapters.language_model.transformers.loading import Loaded
from domain.prompt import Prompt, Sampling
from entrypoints.settings import load_settings
from tests.benchmarks.engines import HISTORY, LAYOUT, PERSONA

ROUNDS, THREADS, TOKENS = 5, 1, 48
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=TOKENS)
# Chatty enough to speak for all its tokens.
PROMPT = Prompt("同学", "紫舒老师", PERSONA, "我该怎么学好数学？请一步一步地告诉我。", history=HISTORY)


@torch.inference_mode()
def bare(loaded: Loaded, prompt: Prompt, tokens: int) -> list[float]:
    """Return when each token came; those that end a reply are passed over, as ours are."""
    cache, ids, times = DynamicCache(), torch.tensor([loaded.encoder.ids(prompt)]), []
    began = perf_counter()
    for _ in range(tokens):
        ids = loaded.model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        int(ids)
        times.append(perf_counter() - began)
    return times


@dataclass
class Beat:
    """The longest time in which the event loop did nothing else, in seconds."""

    longest: float = 0.0


@asynccontextmanager
async def beating() -> AsyncIterator[Beat]:
    beat = Beat()

    async def watch() -> None:
        while True:
            began = perf_counter()
            await asyncio.sleep(0.001)
            beat.longest = max(beat.longest, perf_counter() - began - 0.001)

    watching = asyncio.create_task(watch())
    yield beat
    watching.cancel()


def per_token(times: list[float]) -> float:
    return 1000 * (times[-1] - times[0]) / (len(times) - 1)


async def main() -> None:
    cache = load_settings().cache_dir
    config = transformers.Config(adapter=None, layout=LAYOUT, threads=THREADS, cache_dir=cache, lookup_tokens=0)
    model = transformers.TransformersModel(config)
    await model.load()
    loaded = model.engine.loaded
    assert loaded
    ours: list[float] = []
    plain: list[float] = []
    blocked: list[float] = []
    for lap in range(ROUNDS + 1):
        prompt = replace(PROMPT, persona=f"《数学》第{lap + 1}幕。{PERSONA}")
        before = model.engine.counts.steps
        async with beating() as beat:
            heard = [
                (perf_counter(), model.engine.counts.steps)
                async for _ in model.generate(prompt, expert="base", sampling=GREEDY)
            ]
        ended, steps = perf_counter(), model.engine.counts.steps
        spent = 1000 * (ended - heard[0][0]) / (steps - heard[0][1])
        times = await asyncio.to_thread(bare, loaded, prompt, steps - before + 1)
        if lap:  # the first warms up
            ours.append(spent)
            plain.append(per_token(times))
            blocked.append(beat.longest)
    await model.close()
    share = statistics.median(a / b - 1 for a, b in zip(ours, plain, strict=True))
    print(
        f"{THREADS} thread; Gemma 3 270M, at most {TOKENS} tokens greedily; medians of {ROUNDS} rounds. The goals are"
    )
    print("5 % and 50 ms.\n")
    print("| bare loop, ms/token | ours, ms/token | overhead | event loop blocked for at most, ms |")
    print("|---|---|---|---|")
    print(
        f"| {statistics.median(plain):.1f} | {statistics.median(ours):.1f} | {100 * share:.1f} % "
        f"| {1000 * max(blocked):.1f} |"
    )


if __name__ == "__main__":
    asyncio.run(main())
