"""Naive Bayes over character n-grams: no library, and the labelled set is learnt at the first use in some 50 ms."""

import asyncio
from collections.abc import Iterable
from functools import cache
from math import log, sqrt

from pydantic import BaseModel, ConfigDict

from adapters.emotion_classifier import LABELS, Labelled, labelled_set, likeliest, readable, says_nothing
from domain.conversation import Role
from domain.emotion import Emotion, EmotionLabel
from domain.ports import EmotionClassifier

# What is added to every count, so that an n-gram never seen with a label does not rule it out.
SMOOTHING = 0.3
# Makes the probabilities honest; measured by tests/benchmarks/emotion.py.
SHARPNESS = 1.6
_START, _END = "\x02", "\x03"


class Config(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NaiveBayes:
    """Multinomial naive Bayes; each n-gram of a text counts once.

    Args:
        sentences: What to learn from.
    """

    def __init__(self, sentences: Iterable[Labelled]) -> None:
        self._counts: dict[str, list[int]] = {}
        self._grams = [0] * len(LABELS)
        self._texts = [0] * len(LABELS)
        for sentence in sentences:
            place, grams = LABELS.index(sentence.label), _grams(sentence.text, sentence.speaker)
            for gram in grams:
                self._counts.setdefault(gram, [0] * len(LABELS))[place] += 1
            self._grams[place] += len(grams)
            self._texts[place] += 1
        self._logs = [log(count + SMOOTHING) for count in range(max(self._texts, default=0) + 1)]

    def evidence(self, text: str, speaker: Role, *, left_out: EmotionLabel | None = None) -> list[float]:
        """Return what speaks for each of `LABELS`, around 0.

        Neighbouring n-grams say the same again, so that n of them are worth no more than √n independent ones.

        Args:
            text: A clause.
            speaker: Who says it.
            left_out: The label that the text was learnt with: what it taught is left out, as if it were new.
        """
        grams = _grams(text, speaker)
        rows = [row for gram in grams if (row := self._counts.get(gram))]
        kinds, in_texts, in_grams = len(self._counts), self._texts, self._grams
        if left_out:
            place = LABELS.index(left_out)
            kept = [row for row in rows if sum(row) > 1]
            kinds -= len(rows) - len(kept)
            rows = [_less(row, place, 1) for row in kept]
            in_texts, in_grams = _less(in_texts, place, 1), _less(in_grams, place, len(grams))
        columns = list(zip(*rows, strict=True)) or [()] * len(LABELS)
        scores = [
            log(texts + 1) - len(rows) * log(total + SMOOTHING * kinds) + sum(map(self._logs.__getitem__, column))
            for texts, total, column in zip(in_texts, in_grams, columns, strict=True)
        ]
        middle = sum(scores) / len(scores)
        return [(score - middle) / sqrt(len(grams)) for score in scores]


def _grams(text: str, speaker: Role) -> dict[str, None]:
    """Return the distinct 1- to 3-grams in order, the speaker as one more; the ends count within longer ones only."""
    marked = _START + readable(text) + _END
    longer = (marked[at : at + size] for size in (2, 3) for at in range(len(marked) - size + 1))
    return dict.fromkeys([f"<{speaker.value}>", *marked[1:-1], *longer])


def _less(row: list[int], place: int, number: int) -> list[int]:
    return [*row[:place], row[place] - number, *row[place + 1 :]]


@cache
def learnt() -> NaiveBayes:
    """Return the model of the whole labelled set."""
    return NaiveBayes(labelled_set())


class NGram:
    """An `EmotionClassifier` that knows what words usually mean, and no more."""

    async def classify(self, text: str, speaker: Role) -> Emotion:
        if says_nothing(text):
            return Emotion()
        bayes = await asyncio.to_thread(learnt)
        return likeliest([SHARPNESS * score for score in bayes.evidence(text, speaker)])


def build(config: Config) -> EmotionClassifier:
    """Return the classifier."""
    return NGram()
