"""Our engines against the bare ones on the same weights: python -m tests.benchmarks.engines (prints a Markdown table).

Every prompt is new, so that no prompt cache helps, and goes to all engines in turn within seconds; greedy, one thread.
"""

import asyncio
import statistics
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
import xllamacpp

from adapters.language_model import llama_cpp, transformers
from adapters.models.starter import assembled
from domain.conversation import Message, Role
from domain.ports import LanguageModel
from domain.prompt import LAYOUTS, Prompt, Sampling, as_text
from entrypoints.settings import load_settings

ROUNDS, THREADS, TOKENS = 3, 1, 32
GREEDY = Sampling(temperature=0, repetition_penalty=1, max_tokens=TOKENS)
PERSONA = "紫舒老师是一位年轻的二次元老师，温柔、爱笑、有点小调皮，说话亲切，常带“呀”“呢”“哦”。" * 6
HISTORY = (
    Message(Role.USER, "早上好，老师！"),
    Message(Role.HER, "早上好呀～昨晚睡得好吗？今天也要元气满满地度过哦！"),
    Message(Role.USER, "我和好朋友吵架了。"),
    Message(Role.HER, "哎呀，心里一定很难受吧。要不要先跟老师说说发生了什么呢？说出来会舒服一点哦。"),
)
# Questions that the bare starter answers at length, turn marks around them.
WORDS = ("我该怎么学好数学？请一步一步地告诉我。", "我该怎么学好英语？请一步一步地告诉我。")
LAYOUT = "turns"


@dataclass(frozen=True)
class Reply:
    """When the tokens of a reply came, in seconds since it was asked for."""

    times: list[float]


def first(reply: Reply) -> float:
    return reply.times[0]


def speed(reply: Reply) -> float:
    return (len(reply.times) - 1) / (reply.times[-1] - reply.times[0])


Engine = Callable[[Prompt], Reply]


def ours(runner: asyncio.Runner, model: LanguageModel, prompt: Prompt) -> Reply:
    async def listen() -> list[float]:
        began = perf_counter()
        async with aclosing(model.generate(prompt, expert="base", sampling=GREEDY)) as pieces:
            return [perf_counter() - began async for _ in pieces]

    return Reply(runner.run(listen()))


def plain_generate(model: Any, tokenizer: Any, prompt: Prompt) -> Reply:
    class Clock:
        """A streamer that notes the time; the prompt itself comes first."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _: object) -> None:
            self.times.append(perf_counter() - began)

        def end(self) -> None: ...

    torch.set_num_threads(THREADS)
    clock, began = Clock(), perf_counter()
    given = tokenizer(as_text(prompt, LAYOUTS[LAYOUT]), return_tensors="pt")
    model.generate(**given, do_sample=False, max_new_tokens=TOKENS, streamer=clock)
    return Reply(clock.times[1:])


def bare_xllamacpp(server: xllamacpp.Server, prompt: Prompt) -> Reply:
    times: list[float] = []

    def note(chunk: dict[str, Any]) -> None:
        if chunk["choices"][0].get("text"):
            times.append(perf_counter() - began)

    began = perf_counter()
    request = {"prompt": as_text(prompt, LAYOUTS[LAYOUT]), "max_tokens": TOKENS, "temperature": 0, "stream": True}
    server.handle_completions(request, note)
    return Reply(times)


def bare_server(weights: str) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = weights
    params.n_ctx, params.n_parallel, params.verbosity = 4096, 1, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    return xllamacpp.Server(params)


def measured(engines: dict[str, Engine]) -> dict[str, list[Reply]]:
    replies: dict[str, list[Reply]] = {name: [] for name in engines}
    for lap in range(ROUNDS + 1):
        for words in WORDS:
            prompt = Prompt("同学", "紫舒老师", f"《{words[4:8]}》第{lap + 1}幕。{PERSONA}", words, history=HISTORY)
            for name, engine in engines.items():
                reply = engine(prompt)
                if lap:  # the first warms up
                    replies[name].append(reply)
    return replies


def print_table(replies: dict[str, list[Reply]], prompt_tokens: int) -> None:
    def median(of: Callable[[Reply], float], name: str) -> float:
        return statistics.median(map(of, replies[name]))

    def ratio(of: Callable[[Reply], float], name: str, bare: str) -> float:
        return statistics.median(of(a) / of(b) for a, b in zip(replies[name], replies[bare], strict=True))

    print(f"{THREADS} thread; Gemma 3 270M, prompts of about {prompt_tokens} tokens that no cache has seen,")
    print(f"{TOKENS} tokens greedily; medians of {ROUNDS * len(WORDS)} runs, ratios within each run.\n")
    print(
        "| engine | first token, ms | tokens/s | first token, ours/bare | tokens/s, ours/bare |\n|---|---|---|---|---|"
    )
    names = list(replies)
    for name, bare in zip(names[::2], names[1::2], strict=True):
        print(
            f"| {name} | {1000 * median(first, name):.0f} | {median(speed, name):.1f} "
            f"| {ratio(first, name, bare):.2f} | {ratio(speed, name, bare):.2f} |"
        )
        print(f"| {bare} | {1000 * median(first, bare):.0f} | {median(speed, bare):.1f} | | |")


def main() -> None:
    cache = load_settings().cache_dir
    loaded = transformers.build(transformers.Config(adapter=None, layout=LAYOUT, threads=THREADS, cache_dir=cache))
    gguf = llama_cpp.build(llama_cpp.Config(adapter=None, layout=LAYOUT, threads=THREADS, cache_dir=cache))
    with asyncio.Runner() as runner:
        runner.run(loaded.load())
        runner.run(gguf.load())
        inner = loaded.engine.loaded
        replies = measured(
            {
                f"`transformers`, ours, {str(inner.model.dtype).removeprefix('torch.')}": partial(ours, runner, loaded),
                "`model.generate`, plain": partial(plain_generate, inner.model, inner.tokenizer),
                "`llama_cpp`, ours, Q4_K_M": partial(ours, runner, gguf),
                "`xllamacpp`, bare": partial(bare_xllamacpp, bare_server(str(assembled(cache)))),
            }
        )
        print_table(replies, loaded.count_tokens(PERSONA + "".join(line.text for line in HISTORY) + WORDS[0]))
        runner.run(loaded.close())
        runner.run(gguf.close())


if __name__ == "__main__":
    main()
