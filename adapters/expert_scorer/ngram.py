"""Naive Bayes over character n-grams: no library, and all examples are learnt at the first use in some 50 ms."""

import asyncio
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt

from pydantic import BaseModel, ConfigDict

from adapters.expert_scorer import lessons, readable
from domain.ports import ExpertScorer
from domain.routing import BASE, Expert

# What is added to every count, so that an n-gram never seen with an expert does not rule it out.
SMOOTHING = 0.5
# Makes the probabilities honest. Both were chosen by five-fold cross-validation over the lessons.
SHARPNESS = 1.6
_START, _END = "\x02", "\x03"


class Config(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NaiveBayes:
    """Multinomial naive Bayes; each n-gram of a text counts once.

    Args:
        texts: What to learn from, by name.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self.names = tuple(name for name, known in texts.items() if known)
        self._counts: dict[str, list[int]] = {}
        self._grams = [0] * len(self.names)
        self._texts = [len(texts[name]) for name in self.names]
        for place, name in enumerate(self.names):
            for text in texts[name]:
                grams = _grams(text)
                for gram in grams:
                    self._counts.setdefault(gram, [0] * len(self.names))[place] += 1
                self._grams[place] += len(grams)

    def evidence(self, text: str) -> list[float]:
        """Return the logarithm of an unnormalised probability for each of `names`.

        Neighbouring n-grams say the same again, so that n of them are worth no more than √n independent ones.
        """
        grams = _grams(text)
        rows = [row for gram in grams if (row := self._counts.get(gram))]
        spread = SMOOTHING * len(self._counts)
        scores = []
        for place, (texts, total) in enumerate(zip(self._texts, self._grams, strict=True)):
            seen = sum(log(row[place] + SMOOTHING) for row in rows) - len(rows) * log(total + spread)
            scores.append(log(texts) / SHARPNESS + seen / sqrt(len(grams)) if grams else log(texts))
        return scores


def _grams(text: str) -> dict[str, None]:
    """Return the distinct 1- to 3-grams in order; the ends count within longer ones only."""
    marked = _START + readable(text) + _END
    longer = (marked[at : at + size] for size in (2, 3) for at in range(len(marked) - size + 1))
    return dict.fromkeys([*marked[1:-1], *longer])


class NGram:
    """An `ExpertScorer` that knows the words of the examples, and no more."""

    def __init__(self) -> None:
        self._experts: tuple[Expert, ...] = ()
        self._bayes: NaiveBayes | None = None

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        asked = tuple(experts)
        if self._bayes is None or asked != self._experts:
            self._bayes = await asyncio.to_thread(lambda: NaiveBayes(lessons(asked)))
            self._experts = asked
        bayes = self._bayes
        nobody = dict.fromkeys((expert.name for expert in asked), 0.0)
        if not readable(words):
            return {**nobody, BASE: 1.0}
        scores = [SHARPNESS * score for score in bayes.evidence(words)]
        shares = [exp(score - max(scores)) for score in scores]
        return {**nobody, **{name: share / sum(shares) for name, share in zip(bayes.names, shares, strict=True)}}


def build(config: Config) -> ExpertScorer:
    """Return the scorer."""
    return NGram()
