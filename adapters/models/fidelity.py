"""How far a quantised model strays from its reference: KL divergence, agreement and perplexity on text of our own."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.data_folder import write_whole

# The classes of transformers carry no types that say anything.
Model = Any
Tokenizer = Any

_TEXT = Path(__file__).with_name("calibration.txt")
# What `quantise` leaves beside the weights that it writes.
REPORT = "quantised.json"
# Longer lines are cut: the logits of one line and a vocabulary of 262,144 take a megabyte a token.
_LONGEST = 256
# Of each file of weights this many blocks are hashed; two sets of trained weights differ in all of them.
_BLOCKS, _BLOCK = 64, 4096


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a model is worth beside its reference.

    Attributes:
        kl: KL(reference || model), nats a token: the mean over all places of the text.
        top1: Share of places where both think the same token likeliest.
        perplexity: The model's own, on the same text.
        reference_perplexity: That of the reference.
        tokens: How many places were compared.
    """

    kl: float
    top1: float
    perplexity: float
    reference_perplexity: float
    tokens: int


@cache
def calibration() -> tuple[str, ...]:
    """Return the lines that models are compared and quantised on: everyday Chinese, lessons, feelings, some English."""
    return tuple(_TEXT.read_text(encoding="utf-8").splitlines())


@torch.inference_mode()
def compare(reference: Model, model: Model, tokenizer: Tokenizer, lines: Iterable[str] | None = None) -> Fidelity:
    """Return how far a model strays from its reference.

    KL(p || q) = sum p (log p - log q) over the vocabulary (Kullback & Leibler 1951, doi:10.1214/aoms/1177729694), in
    fp32, of the token after each one of the text; perplexity = exp(mean negative log-likelihood).

    Args:
        reference: The model in fp32, or the best that there is.
        model: The one to judge, on any device; its vocabulary is the reference's.
        tokenizer: Of both.
        lines: Each is read alone; those of `calibration` by default.
    """
    kl = agreed = reference_loss = loss = 0.0
    places = predicted = 0
    for line in calibration() if lines is None else lines:
        tokens = torch.tensor([tokenizer(line).input_ids[:_LONGEST]])
        if tokens.shape[1] < 2:
            continue
        p, q = _log_probabilities(reference, tokens), _log_probabilities(model, tokens)
        kl += float((p.exp() * (p - q)).sum())
        agreed += float((p.argmax(-1) == q.argmax(-1)).sum())
        following = tokens[0, 1:, None]
        reference_loss -= float(p[:-1].gather(1, following).sum())
        loss -= float(q[:-1].gather(1, following).sum())
        places += len(p)
        predicted += len(following)
    # rounding can take a sum over a whole vocabulary a hair below zero
    return Fidelity(
        max(kl / places, 0.0),
        agreed / places,
        _perplexity(loss / predicted),
        _perplexity(reference_loss / predicted),
        places,
    )


def fingerprint(folder: Path) -> str:
    """Return a hash that tells one set of weights from another: headers, sizes and blocks from all over the files.

    Reading all of a large model would take longer than loading it.
    """
    digest = sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(int.from_bytes(file.read(8), "little")))
            for block in range(_BLOCKS):
                file.seek(block * size // _BLOCKS)
                digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def recall(cache_dir: Path, weights: str, precision: str) -> Fidelity | None:
    """Return what was measured of these weights in this precision on the text as it is now, if it was."""
    try:
        keys = json.loads(_file(cache_dir, weights, precision).read_text(encoding="utf-8"))
        return Fidelity(**keys)
    except (OSError, ValueError, TypeError):
        return None


def recorded(folder: Path) -> Fidelity | None:
    """Return what was measured when a folder was quantised, or None where nobody did."""
    try:
        return Fidelity(**json.loads((folder / REPORT).read_text(encoding="utf-8"))["fidelity"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(cache_dir: Path, weights: str, precision: str, measured: Fidelity) -> None:
    """Keep a measurement; where the disk refuses, it is made again next time."""
    file = _file(cache_dir, weights, precision)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(asdict(measured)))
    except OSError:
        return


def _file(cache_dir: Path, weights: str, precision: str) -> Path:
    text = sha256("\n".join(calibration()).encode()).hexdigest()
    return cache_dir / "fidelity" / f"{weights[:24]}-{precision}-{text[:8]}.json"


def _log_probabilities(model: Model, tokens: Tensor) -> Tensor:
    """Return log-probabilities in fp32 on the CPU, shape (tokens, vocabulary)."""
    logits: Tensor = model(input_ids=tokens.to(model.device), use_cache=False).logits
    return torch.log_softmax(logits[0].float(), dim=-1).cpu()


def _perplexity(loss: float) -> float:
    """Return e to a loss; beyond what a float holds, infinity."""
    return math.exp(loss) if loss < 700 else math.inf
