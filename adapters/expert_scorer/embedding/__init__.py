"""Ridge regression over an embedder's vectors and hashed n-grams, calibrated by leave-one-out: the better scorer."""

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from re import sub

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field

from adapters.data_folder import write_whole
from adapters.expert_scorer import PACKAGED, lessons, readable
from adapters.expert_scorer.embedding.regression import (
    BUCKETS,
    PENALTY,
    Array,
    Fitted,
    Shipped,
    Statistics,
    features,
    fit,
    read_shipped,
)
from adapters.models.vectors import CachedEmbedder
from domain.ports import Embedder, ExpertScorer
from domain.routing import BASE, Expert

_BLOCK = 64


class Config(BaseModel):
    """Where weights and vectors are kept that had to be made here.

    Attributes:
        cache_dir: The cache folder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cache_dir: Path = Field(default_factory=lambda: user_cache_path("zishu"))


class _Lessons:
    """An `Embedder` whose passages are another's queries: examples are embedded as what is said will be."""

    def __init__(self, embedder: Embedder) -> None:
        self.identity = f"{embedder.identity} queries"
        self.embed_queries = self.embed_passages = embedder.embed_queries


class EmbeddingScorer:
    """An `ExpertScorer` whose weights come with the package, from the cache, or are learnt at the first use.

    Args:
        embedder: Gives the vector of what is said: one for each line that is scored.
        cache_dir: Where weights, and the vectors of examples, are kept.
    """

    def __init__(self, embedder: Embedder, cache_dir: Path) -> None:
        self._embedder = embedder
        self._cache_dir = cache_dir
        self._examples = CachedEmbedder(_Lessons(embedder), cache_dir / "vectors.sqlite")
        self._experts: tuple[Expert, ...] = ()
        self._fitted: Fitted | None = None
        self._learning: tuple[tuple[Expert, ...], asyncio.Task[Fitted]] | None = None

    async def score(self, words: str, experts: Sequence[Expert]) -> Mapping[str, float]:
        nobody = dict.fromkeys((expert.name for expert in experts), 0.0)
        if not experts or not readable(words):
            return {**nobody, BASE: 1.0}
        fitted = await self._weights(tuple(experts))
        (vector,) = await self._embedder.embed_queries([words])
        return {**nobody, **fitted.posteriors(vector, words)}

    async def statistics_of(self, examples: Sequence[str]) -> str:
        """Return the file that an expert with these examples may bring instead of them; see `statistics_file`."""
        rows = await self._rows(examples)
        return Shipped.of(rows, self._recipe()).model_dump_json()

    def statistics_file(self) -> str:
        """Return the name of the file of statistics for this embedder in an expert's folder."""
        return f"statistics-{self._plain_identity()}.json"

    async def _weights(self, experts: tuple[Expert, ...]) -> Fitted:
        """Return the weights for these experts; whoever gives up waiting does not stop the learning."""
        if self._fitted is None or experts != self._experts:
            if self._learning is None or self._learning[0] != experts or self._learning[1].done():
                self._learning = experts, asyncio.ensure_future(self._learn(experts))
            self._fitted = await asyncio.shield(self._learning[1])
            self._experts = experts
        return self._fitted

    async def _learn(self, experts: tuple[Expert, ...]) -> Fitted:
        learnt = {name: texts for name, texts in lessons(experts).items() if texts}
        brought = {expert.name: file for expert in experts if (file := self._brought(expert)) is not None}
        key = await asyncio.to_thread(self._key, learnt, brought)
        if stored := await asyncio.to_thread(self._stored, key):
            return stored
        rows = {name: await self._rows(texts) for name, texts in learnt.items()}
        size = rows[BASE].shape[1] - BUCKETS

        def finish() -> Fitted:
            statistics = {name: Statistics.of(each) for name, each in rows.items()}
            for name, file in brought.items():
                statistics[name] = read_shipped(file, self._recipe(), size + BUCKETS)
            fitted = fit(statistics, rows, size=size, key=key)
            self._store(fitted)
            return fitted

        return await asyncio.to_thread(finish)

    async def _rows(self, texts: Sequence[str]) -> Array:
        vectors: list[Sequence[float]] = []
        for start in range(0, len(texts), _BLOCK):
            vectors += await self._examples.embed_passages(texts[start : start + _BLOCK])
        return await asyncio.to_thread(features, vectors, texts)

    def _brought(self, expert: Expert) -> Path | None:
        """Return the file of statistics of an expert that has no examples."""
        if expert.examples or expert.folder is None:
            return None
        file = expert.folder / self.statistics_file()
        return file if file.is_file() else None

    def _stored(self, key: str) -> Fitted | None:
        """Return weights that were learnt from the very same things, if there are any."""
        for folder in (PACKAGED, self._cache_dir):
            try:
                fitted = Fitted.model_validate_json((folder / self._name()).read_bytes())
            except (OSError, ValueError):  # there is none, or it is damaged
                continue
            if fitted.key == key:
                return fitted
        return None

    def _store(self, fitted: Fitted) -> None:
        """Keep the weights for the next start; where the disk refuses, they are learnt again."""
        try:
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            write_whole(self._cache_dir / self._name(), fitted.model_dump_json())
        except OSError:
            return

    def _plain_identity(self) -> str:
        return sub(r"[^\w.-]", "-", self._embedder.identity)

    def _name(self) -> str:
        return f"routing-{self._plain_identity()}.json"

    def _recipe(self) -> str:
        return sha256(repr((self._embedder.identity, BUCKETS, PENALTY)).encode()).hexdigest()

    def _key(self, learnt: Mapping[str, Sequence[str]], brought: Mapping[str, Path]) -> str:
        files = [(name, sha256(file.read_bytes()).hexdigest()) for name, file in brought.items()]
        return sha256(repr((self._recipe(), list(learnt.items()), files)).encode("utf-8", "replace")).hexdigest()


def build(config: Config, embedder: Embedder) -> ExpertScorer:
    """Return the scorer.

    Args:
        config: Where to keep weights.
        embedder: What its vectors are learnt from; better than n-grams alone where it knows meaning.
    """
    return EmbeddingScorer(embedder, config.cache_dir)
