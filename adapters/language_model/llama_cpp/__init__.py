"""GGUF models of llama.cpp in this process, by the xllamacpp wheel: the fastest way for one user without a GPU."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from threading import Event

import psutil

from adapters.language_model.llama_cpp.admission import Admission, Slots
from adapters.language_model.llama_cpp.config import Config
from adapters.language_model.llama_cpp.loading import start
from adapters.language_model.llama_cpp.server import Server
from adapters.models.plugged import Plugged, plugged_adapters
from domain.errors import BackendUnavailable, ZishuError
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

    The engine takes adapters when it is made. Where experts were plugged in or out since, the next conversation makes
    another engine once all running replies have ended.
    """

    def __init__(self, config: Config, experts: Experts | None = None) -> None:
        self._config = config
        self._experts = experts
        self._server: Server | None = None
        self._plugged: Mapping[str, Plugged] = {}
        self._loading = asyncio.Lock()
        self._threads = ThreadPoolExecutor(config.batch, thread_name_prefix="llama_cpp")
        self._admission = Admission(config.batch, config.waiting)
        self._slots = Slots(config.batch)
        self._left_out: Mapping[str, str] = {}  # since the engine was made
        self._closed = Event()

    @property
    def context_tokens(self) -> int:
        return self._server.context_tokens if self._server else self._config.context_tokens

    def refused(self) -> Mapping[str, str]:
        return {**(self._server.adapters.refused if self._server else {}), **self._left_out}

    async def load(self) -> None:
        async with self._loading:
            if self._closed.is_set():
                raise _was_closed()
            if self._server is None:
                self._plugged = plugged_adapters(self._experts)
                self._server = await asyncio.to_thread(start, self._config, self._plugged)

    def count_tokens(self, text: str) -> int:
        return self._ready().count_tokens(text)

    async def generate(self, prompt: Prompt, *, expert: str, sampling: Sampling) -> AsyncGenerator[str, None]:
        wanted = await self._admission.enter(lambda: self._adapter(expert) if self._is_up_to_date() else None)
        try:
            if wanted is None:
                await self._keep_up()
                self._admission.share(self._adapter(expert))
            async with aclosing(self._reply(prompt, sampling, self._adapter(expert))) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._admission.leave()
        if self._closed.is_set():
            raise _was_closed()

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Do nothing: the engine holds all adapters."""

    async def close(self) -> None:
        self._closed.set()
        self._admission.close(_was_closed())
        async with self._loading:
            await asyncio.to_thread(self._threads.shutdown)
            server, self._server = self._server, None
            if server:
                await asyncio.to_thread(server.stop)

    def _is_up_to_date(self) -> bool:
        """Tell whether there is an engine with what is plugged in now."""
        return self._server is not None and plugged_adapters(self._experts) == self._plugged

    def _adapter(self, expert: str) -> str:
        """Return the adapter that answers for an expert: its own, or "" for the persona's."""
        usable = expert in self._plugged and expert not in self._left_out
        return self._ready().adapters.of(expert) if usable else ""

    async def _keep_up(self) -> None:
        """Make an engine with what is plugged in now; nobody is speaking. Where that fails, the old one goes on."""
        await self.load()
        async with self._loading:
            if self._closed.is_set():
                raise _was_closed()
            before, plugged = self._ready(), plugged_adapters(self._experts)
            if plugged == self._plugged:
                return
            try:
                _require_room(before.size)
                self._server = await asyncio.to_thread(start, self._config, plugged)
            except ZishuError as error:
                changed = {name for name, each in plugged.items() if self._plugged.get(name) != each}
                self._left_out = {**self._left_out, **dict.fromkeys(sorted(changed), str(error))}
            else:
                self._left_out, self._slots = {}, Slots(self._config.batch)
                await asyncio.to_thread(before.stop)
            self._plugged = plugged

    async def _reply(self, prompt: Prompt, sampling: Sampling, adapter: str) -> AsyncGenerator[str, None]:
        """Yield a reply from a thread that waits for the engine."""
        if self._closed.is_set():
            raise _was_closed()
        server, slots, loop = self._ready(), self._slots, asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        abandoned = Event()

        def put(piece: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def unwanted() -> bool:
            return abandoned.is_set() or self._closed.is_set()

        slot = slots.take(adapter, prompt)
        # without adapters the engine knows best: it keeps what its slots forget, and finds it again
        chosen = slot if server.adapters.experts else -1
        try:
            reply = self._threads.submit(server.stream, prompt, sampling, put, unwanted, adapter=adapter, slot=chosen)
            reply.add_done_callback(lambda _: put(None))
            try:
                while (piece := await pieces.get()) is not None:
                    yield piece
            finally:
                abandoned.set()
                while not reply.done():
                    await pieces.get()
        finally:
            slots.give_back(slot)
        reply.result()  # what went wrong on the thread goes wrong here

    def _ready(self) -> Server:
        if self._server is None:
            if self._closed.is_set():
                raise _was_closed()
            raise BackendUnavailable("The model is not loaded.", "Load it before it is asked anything.")
        return self._server


def _require_room(size: int) -> None:
    """Refuse to have the model in memory twice for a moment where that does not fit.

    Raises:
        BackendUnavailable: There is not enough memory.
    """
    free = psutil.virtual_memory().available
    if free < size:
        raise BackendUnavailable(
            f"Taking in a change of experts needs {size / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free.",
            "Start the program again, or close other programs.",
        )


def _was_closed() -> BackendUnavailable:
    return BackendUnavailable("The model was closed.", "Start the program again.")
