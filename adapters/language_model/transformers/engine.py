"""The thread that owns a model, and the way to it from an event loop."""

import gc
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING

from adapters.language_model.transformers.config import Config
from adapters.language_model.transformers.requests import EngineCounts, PrefillCounts, Request
from domain.errors import BackendUnavailable
from domain.ports import Experts

if TYPE_CHECKING:
    from adapters.language_model.transformers.loading import Loaded
    from adapters.language_model.transformers.scheduling import Scheduler


class Engine:
    """A model on a thread of its own; whatever is asked of it lines up there, between two steps of the model."""

    def __init__(self, config: Config, experts: Experts | None) -> None:
        self._config = config
        self._experts = experts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._places = BoundedSemaphore(config.batch + config.waiting)
        self._closed = Event()
        self._scheduler: Scheduler | None = None
        self._working = False

    @property
    def loaded(self) -> "Loaded | None":
        """The model, once it is loaded."""
        return self._scheduler.loaded if self._scheduler else None

    @property
    def counts(self) -> EngineCounts:
        """What the engine does now and has done so far."""
        return self._scheduler.counts if self._scheduler else EngineCounts()

    @property
    def prefills(self) -> tuple[PrefillCounts, ...]:
        """How the last prompts were read, the newest last."""
        return self._scheduler.prefills if self._scheduler else ()

    def load(self) -> Future[None]:
        """Bring the model into memory.

        Raises:
            BackendUnavailable: The engine was closed; or in the future, the model cannot be loaded.
        """
        if self._closed.is_set():
            raise _was_closed()
        return self._thread.submit(self._load)

    def submit(self, request: Request) -> None:
        """Line a request up.

        Raises:
            BackendUnavailable: The engine was closed, or too many wait already.
        """
        if self._closed.is_set():
            raise _was_closed()
        if not self._places.acquire(blocking=False):
            raise BackendUnavailable(
                f"{self._config.waiting} conversations already wait for the model.",
                "Try again in a moment, or raise [language_model.transformers] waiting.",
            )
        request.done.add_done_callback(lambda _: self._places.release())

        def turned_away(taken: Future[None]) -> None:
            if (error := taken.exception()) and request.done.set_running_or_notify_cancel():
                request.done.set_exception(error)

        self._thread.submit(self._take, request).add_done_callback(turned_away)

    def anticipate(self, likely: Mapping[str, float]) -> None:
        """Pass a hint on."""

    def close(self) -> Future[None]:
        """End all replies and free the model; nothing can be asked any more."""
        self._closed.set()
        gone = self._thread.submit(self._unload)
        gone.add_done_callback(lambda _: self._thread.shutdown(wait=False))
        return gone

    # From here on everything runs on the model's own thread.

    def _load(self) -> None:
        self._ready()

    def _ready(self) -> "Scheduler":
        if self._closed.is_set():
            raise _was_closed()
        if self._scheduler is None:
            from adapters.language_model.transformers.loading import load
            from adapters.language_model.transformers.scheduling import BaseAlone, Scheduler

            self._scheduler = Scheduler(load(self._config), BaseAlone(), self._config)
        return self._scheduler

    def _take(self, request: Request) -> None:
        self._ready().add(request)
        if not self._working:
            self._work()

    def _work(self) -> None:
        """Do a piece of work; what is left lines up behind what has been asked meanwhile."""
        self._working = False
        if self._scheduler and not self._closed.is_set() and self._scheduler.work():
            self._working = True
            self._thread.submit(self._work).add_done_callback(self._worked)

    def _worked(self, work: Future[None]) -> None:
        """Let nobody wait for ever when something went wrong that nobody foresaw."""
        if (error := work.exception()) and self._scheduler:
            self._scheduler.fail(error)

    def _unload(self) -> None:
        if self._scheduler:
            self._scheduler.fail(_was_closed())
        self._scheduler = None
        gc.collect()


def _was_closed() -> BackendUnavailable:
    return BackendUnavailable("The model was closed.", "Start the program again.")
