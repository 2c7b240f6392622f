"""Models of the transformers library in this process: safetensors or GGUF, on a CPU or a GPU, with LoRA adapters."""

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING, TypeVar

from adapters.language_model.transformers.config import Config
from domain.errors import BackendUnavailable
from domain.ports import Experts, LanguageModel
from domain.prompt import Prompt, Sampling

if TYPE_CHECKING:
    from adapters.language_model.transformers.loading import Loaded

__all__ = ["Config", "TransformersModel", "build"]

Result = TypeVar("Result")


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
    """A language model that lives on one thread of its own; conversations take turns on it."""

    def __init__(self, config: Config, experts: Experts | None = None) -> None:
        self._config = config
        self._experts = experts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._places = BoundedSemaphore(config.waiting + 1)
        self._closed = Event()
        self._loaded: Loaded | None = None

    @property
    def context_tokens(self) -> int:
        return self._loaded.context_tokens if self._loaded else self._config.context_tokens

    async def load(self) -> None:
        if self._loaded is None:
            await asyncio.wrap_future(self._submit(self._load))

    def count_tokens(self, text: str) -> int:
        if self._loaded is None:
            raise BackendUnavailable("The model is not loaded yet.", "Load it before its tokens are counted.")
        return len(self._loaded.tokenizer(text, add_special_tokens=False).input_ids)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        abandoned = Event()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        job = self._submit(lambda: self._answer(prompt, sampling, put, abandoned))
        job.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
        finally:
            abandoned.set()
            job.cancel()  # where it still waits for the thread
            while not job.done():
                await pieces.get()
        job.result()  # what went wrong on the thread goes wrong here

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Do nothing yet."""

    async def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            await asyncio.wrap_future(self._thread.submit(self._unload))
            self._thread.shutdown(wait=False)

    def _submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Queue work for the thread, or turn it away when too many wait already."""
        if self._closed.is_set():
            raise _closed()
        if not self._places.acquire(blocking=False):
            raise BackendUnavailable(
                f"{self._config.waiting} conversations already wait for the model.",
                "Try again in a moment, or raise [language_model.transformers] waiting.",
            )
        job = self._thread.submit(work)
        job.add_done_callback(lambda _: self._places.release())
        return job

    # From here on everything runs on the model's own thread.

    def _load(self) -> "Loaded":
        if self._loaded is None:
            from adapters.language_model.transformers.loading import load

            self._loaded = load(self._config)
        return self._loaded

    def _unload(self) -> None:
        self._loaded = None
        gc.collect()

    def _answer(self, prompt: Prompt, sampling: Sampling, put: Callable[[str], None], abandoned: Event) -> None:
        """Generate one reply and hand its pieces over as they come."""

        def stopped() -> bool:
            return abandoned.is_set() or self._closed.is_set()

        if not stopped():
            from adapters.language_model.transformers.engine import reply

            for piece in reply(self._load(), prompt, sampling, stopped):
                put(piece)
        if self._closed.is_set():
            raise _closed()


def _closed() -> BackendUnavailable:
    return BackendUnavailable("The model was closed.", "Start the program again.")
