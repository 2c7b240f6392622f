"""Hashed counts of character 1- to 3-grams: no model and no library, knows shared words but no synonyms."""

import asyncio
from array import array
from collections.abc import Sequence
from math import sqrt
from operator import mul
from zlib import crc32

from pydantic import BaseModel, ConfigDict

from adapters.embedder import embeddable
from domain.ports import Embedder

# Enough that the n-grams of two sentences seldom fall together; 4,096 were hardly better.
DIMENSIONS = 1024
_START, _END = "\x02", "\x03"


class Config(BaseModel):
    """There is nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Hashed:
    """An `Embedder` that treats queries and passages alike."""

    @property
    def identity(self) -> str:
        return "hashed-1"

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await asyncio.to_thread(lambda: [_vector(text) for text in texts])

    async def embed_passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await self.embed_queries(texts)


def _vector(text: str) -> Sequence[float]:
    """Return the counts at unit length; a bit of each hash is the sign, so that collisions cancel out on average.

    Source: Weinberger et al. 2009, Feature Hashing for Large Scale Multitask Learning, arXiv:0902.2206.
    """
    marked = _START + embeddable(text).casefold() + _END
    counts = [0.0] * DIMENSIONS
    # the marks count within a 2- or 3-gram only
    grams = [*marked[1:-1], *(marked[at : at + size] for size in (2, 3) for at in range(len(marked) - size + 1))]
    for gram in grams:
        digest = crc32(gram.encode())
        counts[digest % DIMENSIONS] += 1.0 if digest >> 31 else -1.0
    # all counts may cancel out in theory: the first axis then stands for nothing known
    length = sqrt(sum(map(mul, counts, counts)))
    return array("f", [count / length for count in counts] if length else [1.0, *counts[1:]])


def build(config: Config) -> Embedder:
    """Return the embedder."""
    return Hashed()
