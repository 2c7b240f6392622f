"""Models of the transformers library in this process: safetensors or GGUF, on a CPU or a GPU, with LoRA adapters."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from importlib.util import find_spec

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.engine import Engine
from adapters.language_model.transformers.requests import Request
from domain.errors import BackendUnavailable
from domain.ports import Experts, LanguageModel
from domain.prompt import Prompt, Sampling

__all__ = ["Config", "TransformersModel", "build"]


def build(config: Config, experts: Experts | None = None) -> LanguageModel:
    """Return the model, not loaded yet.

    Args:
        config: What to load.
        experts: Whose adapters it may answer with.

    Raises:
        BackendUnavailable: A library is missing.
    """
    needed = ("torch", "transformers", "safetensors", "accelerate", *(("peft",) if config.adapter else ()))
    for library in needed:
        if find_spec(library) is None:
            raise BackendUnavailable(
                f"The language_model backend 'transformers' needs '{library}', which is not installed.",
                "Run: pip install -e '.[transformers]'",
            )
    return TransformersModel(config, experts)


class TransformersModel:
    """A language model that lives on one thread of its own and speaks in several conversations side by side.

    Attributes:
        engine: The thread with its model, and what it counts.
    """

    def __init__(self, config: Config, experts: Experts | None = None) -> None:
        self._config = config
        self._closed = False
        self.engine = Engine(config, experts)

    @property
    def context_tokens(self) -> int:
        return self.engine.loaded.context_tokens if self.engine.loaded else self._config.context_tokens

    async def load(self) -> None:
        if self.engine.loaded is None:
            await asyncio.wrap_future(self.engine.load())

    def count_tokens(self, text: str) -> int:
        if self.engine.loaded is None:
            raise BackendUnavailable("The model is not loaded yet.", "Load it before its tokens are counted.")
        return len(self.engine.loaded.tokenizer(text, add_special_tokens=False).input_ids)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        request = Request(prompt, expert, sampling, put)
        self.engine.submit(request)
        request.done.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
        finally:
            request.abandon()
            while not request.done.done():
                await pieces.get()
        request.done.result()  # what went wrong on the thread goes wrong here

    def anticipate(self, likely: Mapping[str, float]) -> None:
        self.engine.anticipate(likely)

    def refused(self) -> Mapping[str, str]:
        return self.engine.refused()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.wrap_future(self.engine.close())
