"""GGUF models of llama.cpp in this process, by the xllamacpp wheel: the fastest way for one user without a GPU."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore, Event

from adapters.language_model.llama_cpp.config import Config
from adapters.language_model.llama_cpp.loading import SLOTS, start
from adapters.language_model.llama_cpp.server import Server
from domain.errors import BackendUnavailable
from domain.ports import Experts, LanguageModel
from domain.prompt import Prompt, Sampling

__all__ = ["Config", "LlamaCpp", "build"]


def build(config: Config, experts: Experts | None = None) -> LanguageModel:
    """Return the model, not loaded yet.

    Args:
        config: What to load.
        experts: Whose adapters it may answer with.
    """
    return LlamaCpp(config, experts)


class LlamaCpp:
    """A language model on the engine's own threads; each running reply holds one more that waits for its pieces.

    There are no experts here: every one of them answers with the same weights.
    """

    def __init__(self, config: Config, experts: Experts | None = None) -> None:
        self._config = config
        self._experts = experts
        self._server: Server | None = None
        self._loading = asyncio.Lock()
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="llama_cpp")
        self._places = BoundedSemaphore(SLOTS + config.waiting)
        self._closed = Event()

    @property
    def context_tokens(self) -> int:
        return self._server.context_tokens if self._server else self._config.context_tokens

    async def load(self) -> None:
        async with self._loading:
            if self._closed.is_set():
                raise _was_closed()
            if self._server is None:
                self._server = await asyncio.to_thread(start, self._config)

    def count_tokens(self, text: str) -> int:
        return self._ready().count_tokens(text)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        await self.load()
        server, loop = self._ready(), asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        abandoned = Event()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def unwanted() -> bool:
            return abandoned.is_set() or self._closed.is_set()

        reply = self._begin(lambda: server.stream(prompt, sampling, put, unwanted))
        reply.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
        finally:
            abandoned.set()
            reply.cancel()  # where it still waits for a slot
            while not reply.done():
                await pieces.get()
        reply.result()  # what went wrong on the thread goes wrong here
        if self._closed.is_set():
            raise _was_closed()

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Do nothing: no expert has to be fetched."""

    async def close(self) -> None:
        self._closed.set()
        async with self._loading:
            await asyncio.to_thread(self._threads.shutdown)
            server, self._server = self._server, None
            if server:
                await asyncio.to_thread(server.stop)

    def _begin(self, stream: Callable[[], None]) -> Future[None]:
        """Queue a reply for a free slot, or turn it away when too many wait already."""
        if not self._places.acquire(blocking=False):
            raise BackendUnavailable(
                f"{self._config.waiting} conversations already wait for the model.",
                "Try again in a moment, or raise [language_model.llama_cpp] waiting.",
            )
        reply = self._threads.submit(stream)
        reply.add_done_callback(lambda _: self._places.release())
        return reply

    def _ready(self) -> Server:
        if self._server is None:
            raise BackendUnavailable("The model is not loaded.", "Load it before it is asked anything.")
        return self._server


def _was_closed() -> BackendUnavailable:
    return BackendUnavailable("The model was closed.", "Start the program again.")
