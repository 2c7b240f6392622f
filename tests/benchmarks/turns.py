"""First token on later turns against a cold one: python -m tests.benchmarks.turns (prints a Markdown table).

A persona of 1,000 tokens and twenty turns of one conversation in the transformers engine; once nothing stands between
the history and the user's words, once the volatile block is full. Cold is the same prompt in an engine that keeps
nothing; both within seconds. Greedy, one thread.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from adapters.language_model.transformers import Config
from adapters.language_model.transformers.loading import Loaded, load
from adapters.language_model.transformers.requests import PrefillCounts, Request
from adapters.language_model.transformers.scheduling import BaseAlone, Scheduler
from domain.conversation import Message, Role
from domain.prompt import Prompt, Sampling
from entrypoints.settings import load_settings
from tests.benchmarks.engines import PERSONA

THREADS, TURNS, PERSONA_TOKENS, VOLATILE_TOKENS = 1, 20, 1000, 250
SAMPLING = Sampling(temperature=0, repetition_penalty=1, max_tokens=12)
WORDS = "老师，我今天第{}次想起昨天的考试，还是有点难过。"


@dataclass(frozen=True)
class Turn:
    """Seconds until the first token, from the request on, cold and in the conversation; and what was read."""

    cold: float
    warm: float
    read: PrefillCounts


def filled(loaded: Loaded, text: str, tokens: int) -> str:
    """Repeat a text until it takes so many tokens."""
    ids = loaded.tokenizer(text * tokens, add_special_tokens=False).input_ids
    return str(loaded.tokenizer.decode(ids[:tokens]))


def answered(engine: Scheduler, prompt: Prompt) -> tuple[float, str]:
    """Return the seconds until the first token, and the reply."""
    pieces: list[str] = []
    began = perf_counter()
    engine.add(Request(prompt, "base", SAMPLING, pieces.append))
    read = engine.counts.prompts
    while engine.counts.prompts == read:
        engine.work()
    first = perf_counter() - began
    while engine.work():
        pass
    return first, "".join(pieces)


def conversation(loaded: Loaded, config: Config, volatile: int) -> list[Turn]:
    engine = Scheduler(loaded, BaseAlone(), config)
    cold_engine = Scheduler(loaded, BaseAlone(), config.model_copy(update={"cache_megabytes": 0}))
    persona = filled(loaded, PERSONA, PERSONA_TOKENS)
    notes = (filled(loaded, "【记得】同学养了一只叫墨墨的小猫，喜欢晒太阳。", volatile),) if volatile else ()
    history: tuple[Message, ...] = ()
    turns = []
    for number in range(TURNS):
        prompt = Prompt("同学", "紫舒老师", persona, WORDS.format(number), history=history, notes=notes)
        warm, reply = answered(engine, prompt)
        cold, _ = answered(cold_engine, prompt)
        turns.append(Turn(cold, warm, engine.prefills[-1]))
        history += (Message(Role.USER, prompt.words), Message(Role.HER, reply or "嗯。"))
    return turns


def row(turns: list[Turn]) -> str:
    def median(of: Callable[[Turn], float]) -> float:
        return statistics.median(map(of, turns))

    return (
        f"{median(lambda turn: turn.read.prompt):.0f} | {median(lambda turn: turn.read.computed):.0f} "
        f"| {1000 * median(lambda turn: turn.cold):.0f} | {1000 * median(lambda turn: turn.warm):.0f} "
        f"| {median(lambda turn: turn.warm / turn.cold):.3f} |"
    )


def main() -> None:
    config = Config(adapter=None, layout="script", threads=THREADS, cache_dir=load_settings().cache_dir)
    loaded = load(config)
    answered(Scheduler(loaded, BaseAlone(), config), Prompt("同学", "紫舒老师", PERSONA, "你好"))  # warms up
    print(f"{THREADS} thread; Gemma 3 270M in {str(loaded.model.dtype).removeprefix('torch.')}, a persona of")
    print(f"{PERSONA_TOKENS} tokens; medians. The goal on turn 2 is 1/7 = 0.143 of a cold first token.\n")
    print("| volatile block | turns | prompt, tokens | computed, tokens | cold, ms | first token, ms | warm/cold |")
    print("|---|---|---|---|---|---|---|")
    for volatile in (0, VOLATILE_TOKENS):
        turns = conversation(loaded, config, volatile)
        for name, some in (("2", turns[1:2]), ("2-7", turns[1:7]), ("8-13", turns[7:13]), ("14-20", turns[13:])):
            print(f"| {f'{volatile} tokens' if volatile else 'empty'} | {name} | {row(some)}")


if __name__ == "__main__":
    main()
