"""Backends that name the emotion in a clause, and what they share: the labelled sentences and how scores are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from unicodedata import normalize

from domain.conversation import Role
from domain.emotion import Emotion, EmotionLabel

LABELLED = Path(__file__).with_name("labelled.tsv")
LABELS = tuple(EmotionLabel)

# Characters that are looked at: more than a clause ever has, and the same that an embedder reads.
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class Labelled:
    """A sentence whose emotion is known."""

    label: EmotionLabel
    speaker: Role
    text: str


def labelled_set() -> list[Labelled]:
    """Return the original Chinese sentences that the classifiers learn from."""
    lines = (line.split("\t") for line in LABELLED.read_text(encoding="utf-8").splitlines())
    return [Labelled(EmotionLabel(label), Role(speaker), text) for label, speaker, text in lines]


def readable(text: str) -> str:
    """Return the part of a text that is looked at, in one form of its characters."""
    return normalize("NFKC", text[:_LONGEST]).casefold()


def says_nothing(text: str) -> bool:
    """Tell whether there is nothing in a text that could be seen."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def likeliest(scores: Sequence[float]) -> Emotion:
    """Return the best label with its probability.

    Args:
        scores: One logarithm of an unnormalised probability for each of `LABELS`.
    """
    best = max(scores)
    return Emotion(LABELS[scores.index(best)], 1 / sum(exp(score - best) for score in scores))
