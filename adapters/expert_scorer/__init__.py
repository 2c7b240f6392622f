"""Backends that tell which expert a line is for, and what they share: what they learn from and what they never see."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from tomllib import loads
from unicodedata import normalize

from domain.routing import BASE, Expert

PACKAGED = Path(__file__).parent
_BASE_FILES = (PACKAGED / "smalltalk.toml", PACKAGED / "elsewhere.toml")
# Characters that are looked at: more than a question has, and the same that an embedder reads.
_LONGEST = 512


def readable(text: str) -> str:
    """Return the part of a text that is looked at, in one form of its characters."""
    return normalize("NFKC", text[:_LONGEST]).casefold().strip()


def held_out(text: str) -> bool:
    """Tell whether an example is kept for measuring: a quarter of all, by a hash, so that it stays so for ever."""
    return sha256(readable(text).encode("utf-8", "replace")).digest()[0] < 64


@cache
def base_examples() -> tuple[str, ...]:
    """Return what users say who need no expert: small talk, and questions that are nobody's subject here."""
    files = (loads(path.read_text(encoding="utf-8")) for path in _BASE_FILES)
    return tuple(text for file in files for text in file["examples"])


def lessons(experts: Iterable[Expert]) -> Mapping[str, Sequence[str]]:
    """Return what to learn from, by name, the base first: every example that is not held out."""
    named = [(BASE, base_examples()), *((expert.name, expert.examples) for expert in experts)]
    return {name: [text for text in texts if not held_out(text)] for name, texts in named}
