"""Every precision of the transformers backend on the starter: what it costs her mind, and what it brings.

Drift is measured on the calibration text, for the bare model and for the model with the persona's adapter that ships
(each against itself in fp32). Memory and speed are measured in a process of their own for each precision, with one
thread and in tokens per CPU second, which on a free core are tokens per second: other programs may run beside.
"""

import gc
import json
import statistics
import subprocess
import sys
from time import process_time

import adapters as _hides_torchaudio  # noqa: F401  # isort: skip - must come before transformers
import psutil
import torch
from transformers import DynamicCache

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.guard import measure
from adapters.language_model.transformers.loading import load
from adapters.language_model.transformers.sources import weights_folder
from adapters.models.fidelity import Fidelity, compare
from entrypoints.settings import load_settings

PRECISIONS = ("fp32", "bf16", "int8_weight_only", "int8_dynamic", "int8", "nf4")
PROMPT_TOKENS, REPLY_TOKENS, ROUNDS = 256, 24, 5
TEXT = "紫舒老师把书轻轻合上，抬头看着窗外的雨。她说，学习就像种一棵树，最好的时间是十年前，其次是现在。"


def config(precision: str, adapter: str | None = None) -> Config:
    return Config(
        precision=precision, adapter=adapter, device="cpu", threads=1, cache_dir=load_settings().cache_dir
    )  # fmt: skip


@torch.inference_mode()
def speed(precision: str) -> dict[str, float]:
    """Load and talk, and return what it took; runs in a process of its own."""
    own, mapped = memory()
    loaded = load(config(precision))
    gc.collect()
    prompt = torch.tensor([(loaded.tokenizer(TEXT * 20).input_ids)[:PROMPT_TOKENS]])
    reading, speaking = [], []
    for _ in range(ROUNDS):
        past = DynamicCache()
        began = process_time()
        logits = loaded.model(prompt, past_key_values=past, logits_to_keep=1).logits
        reading.append(PROMPT_TOKENS / (process_time() - began))
        began = process_time()
        for _ in range(REPLY_TOKENS):
            logits = loaded.model(logits[:, -1:].argmax(-1), past_key_values=past).logits
        speaking.append(REPLY_TOKENS / (process_time() - began))
    own, mapped = (now - before for now, before in zip(memory(), (own, mapped), strict=True))
    return {
        "own": own / 1e6,
        "mapped": mapped / 1e6,
        "prompt": statistics.median(reading),
        "decode": statistics.median(speaking),
    }


def memory() -> tuple[int, int]:
    """Return the bytes that are the process's own, and those that are mapped from files, which the system may drop."""
    now = psutil.Process().memory_info()
    return now.rss - now.shared, now.shared


def alone(precision: str) -> dict[str, float]:
    """Measure the speed in another process."""
    command = [sys.executable, "-m", "tests.benchmarks.precision", precision]
    return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))


def with_persona(precision: str) -> Fidelity:
    """Return how far she strays from herself in fp32."""
    reference, held = (load(config(each, "starter")) for each in ("fp32", precision))
    return compare(reference.model, held.model, held.tokenizer)


def main() -> None:
    folder = weights_folder(config("fp32"))
    torch.set_num_threads(1)
    print("1 thread; Gemma 3 270M. Tokens per CPU second: a prompt of")
    print(f"{PROMPT_TOKENS} tokens, then {REPLY_TOKENS} greedily; medians of {ROUNDS}.")
    print("Memory: its own + what is mapped from the file.\n")
    print("| precision | KL, nats/token | same likeliest | perplexity | KL with the persona's adapter ", end="")
    print(
        "| memory, MB | prompt, tokens/s | decode, tokens/s | decode, of fp32 |\n|---|---|---|---|---|---|---|---|---|"
    )
    plain = 0.0
    for precision in PRECISIONS:
        bare, her, cost = measure("starter", folder, "cpu", precision), with_persona(precision), alone(precision)
        gc.collect()
        plain = plain or cost["decode"]
        cells = (
            precision,
            f"{bare.kl:.4f}",
            f"{bare.top1:.1%}",
            f"{bare.perplexity:.1f}",
            f"{her.kl:.4f}",
            f"{cost['own']:.0f} + {cost['mapped']:.0f}",
            f"{cost['prompt']:.0f}",
            f"{cost['decode']:.1f}",
            f"{cost['decode'] / plain:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(speed(sys.argv[1])))
    else:
        main()
