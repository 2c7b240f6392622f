"""Softmax regression over an embedder's vectors, what n-grams say, and the marks of a text: the better classifier."""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from operator import mul
from pathlib import Path
from re import sub

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field

from adapters import plugins
from adapters.data_folder import write_whole
from adapters.emotion_classifier import LABELLED, LABELS, labelled_set, likeliest, readable, says_nothing
from adapters.emotion_classifier.ngram import SMOOTHING, NaiveBayes, learnt
from domain.conversation import Role
from domain.emotion import Emotion, EmotionLabel
from domain.ports import Embedder, EmotionClassifier

_MARKS = ("!", "?", "~", "...", "哈", ",", "。", "“", "”", "、", "呀", "啦")
# Root mean square length of the centred vectors beside cues of about 1, and the strength of the Gaussian prior on the
# weights; both chosen by cross-validation, and flat around the optimum.
SPREAD, PENALTY = 4.0, 3.0
# Steps after which no probability moves by more than 0.01.
STEPS = 100
_BLOCK = 64

Rows = list[list[float]]


class Config(BaseModel):
    """Where weights are kept that had to be learnt here.

    Attributes:
        cache_dir: The cache folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache_dir: Path = Field(default_factory=lambda: user_cache_path("zishu"))


class Fitted(BaseModel):
    """A file of weights.

    Attributes:
        key: What they were learnt from; other weights are of no use.
        rows: For each of `LABELS` the weights of the vector, of the cues and of a constant 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    rows: Rows


def cues(bayes: NaiveBayes, text: str, speaker: Role, *, left_out: EmotionLabel | None = None) -> list[float]:
    """Return what is seen without an embedder, each about 1 in size: n-grams, marks, length, and who speaks."""
    seen = readable(text)
    marks = [min(3, seen.count(mark)) / 2 for mark in _MARKS]
    side = 1.0 if speaker is Role.HER else -1.0
    return [*bayes.evidence(text, speaker, left_out=left_out), *marks, len(seen) / 20, side]


def fit(vectors: Sequence[Sequence[float]], cues: Sequence[Sequence[float]], labels: Sequence[EmotionLabel]) -> Rows:
    """Learn the weights for `Fitted.rows`.

    Newton's method with a fixed bound on the curvature (Böhning 1992, doi:10.1007/BF00048682), sped up by Nesterov's
    momentum (Beck and Teboulle 2009, doi:10.1137/080716542): no solver is needed, and every step is two products.

    Args:
        vectors: One for each sentence, as the embedder gives them.
        cues: What `cues` returns for each sentence, the sentence itself left out.
        labels: What each sentence is.
    """
    import numpy as np

    given = np.asarray(vectors, dtype=np.float64)
    middle = given.mean(axis=0)
    scale = SPREAD / np.sqrt(((given - middle) ** 2).sum(axis=1).mean())
    inputs = np.column_stack([(given - middle) * scale, np.asarray(cues), np.ones(len(given))])
    targets = np.eye(len(LABELS))[[LABELS.index(label) for label in labels]]
    penalty = np.full((inputs.shape[1], 1), PENALTY)
    penalty[-1] = 1e-3  # the constant is free
    step = np.linalg.inv(0.5 * inputs.T @ inputs + np.diagflat(penalty))
    weights = ahead = np.zeros((inputs.shape[1], len(LABELS)))
    pace = 1.0
    for _ in range(STEPS):
        scores = inputs @ ahead
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        before, weights = weights, ahead + step @ (inputs.T @ (targets - likely) - penalty * ahead)
        pace, slower = (1 + (1 + 4 * pace**2) ** 0.5) / 2, pace
        ahead = weights + (slower - 1) / pace * (weights - before)
    # the vectors come as they are: centring and scale move into the weights
    size = given.shape[1]
    weights[:size] *= scale
    weights[-1] -= middle @ weights[:size]
    return [[float(f"{weight:.5g}") for weight in row] for row in weights.T]


class EmbeddingClassifier:
    """An `EmotionClassifier` whose weights come with the package, from the cache, or are learnt at the first use.

    Args:
        embedder: What it embeds are queries, so that a caching embedder keeps nothing of what was said.
        cache_dir: Where weights are kept that had to be learnt.
    """

    def __init__(self, embedder: Embedder, cache_dir: Path) -> None:
        self._embedder = embedder
        self._cache_dir = cache_dir
        self._learning = asyncio.Lock()
        self._rows: Rows | None = None

    async def classify(self, text: str, speaker: Role) -> Emotion:
        if says_nothing(text):
            return Emotion()
        rows = await self._weights()
        (vector,) = await self._embedder.embed_queries([text])
        features = [*vector, *cues(learnt(), text, speaker), 1.0]
        return likeliest([sum(map(mul, row, features)) for row in rows])

    async def _weights(self) -> Rows:
        async with self._learning:
            if self._rows is None:
                self._rows = await asyncio.to_thread(self._stored) or await self._learn()
        return self._rows

    def _stored(self) -> Rows | None:
        """Return weights that were learnt from the very same things, if there are any."""
        learnt()
        key = self._key()
        for folder in (LABELLED.parent, self._cache_dir):
            try:
                fitted = Fitted.model_validate_json((folder / self._name()).read_bytes())
            except (OSError, ValueError):  # there is none, or it is damaged
                continue
            if fitted.key == key:
                return fitted.rows
        return None

    async def _learn(self) -> Rows:
        sentences, vectors = labelled_set(), list[Sequence[float]]()
        for start in range(0, len(sentences), _BLOCK):
            block = [sentence.text for sentence in sentences[start : start + _BLOCK]]
            vectors += await self._embedder.embed_queries(block)

        def finish() -> Rows:
            bayes = learnt()
            seen = [cues(bayes, each.text, each.speaker, left_out=each.label) for each in sentences]
            try:
                rows = fit(vectors, seen, [sentence.label for sentence in sentences])
            except ImportError as error:
                raise plugins.missing("emotion_classifier", "embedding", error) from error
            self._store(rows)
            return rows

        return await asyncio.to_thread(finish)

    def _store(self, rows: Rows) -> None:
        """Keep the weights for the next start; where the disk refuses, they are learnt again."""
        try:
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            write_whole(self._cache_dir / self._name(), Fitted(key=self._key(), rows=rows).model_dump_json())
        except OSError:
            return

    def _name(self) -> str:
        return "fitted-" + sub(r"[^\w.-]", "-", self._embedder.identity) + ".json"

    def _key(self) -> str:
        recipe = repr((self._embedder.identity, LABELS, _MARKS, SMOOTHING, SPREAD, PENALTY, STEPS))
        return sha256(LABELLED.read_bytes() + recipe.encode()).hexdigest()


def build(config: Config, embedder: Embedder) -> EmotionClassifier:
    """Return the classifier.

    Args:
        config: Where to keep weights.
        embedder: What its vectors are learnt from; better than n-grams alone where it knows meaning.
    """
    return EmbeddingClassifier(embedder, config.cache_dir)
