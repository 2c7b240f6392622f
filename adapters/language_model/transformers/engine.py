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
    from adapters.language_model.transformers.scheduling import Adapters, Scheduler


class Engine:
    """A model on a thread of its own; whatever is asked of it lines up there, between two steps of the model."""

    def __init__(self, config: Config, experts: Experts | None) -> None:
        self._config = config
        self._experts = experts
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers")
        self._places = BoundedSemaphore(config.batch + config.waiting)
        self._closed = Event()
        self._scheduler: Scheduler | None = None
        self._adapters: Adapters | None = None
        self._apart = False  # whether her own adapter stays beside the weights, where an expert's can replace it
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
        """Pass a hint on to whoever fetches the adapters of experts."""
        if self._adapters:
            self._adapters.anticipate(likely)

    def refused(self) -> Mapping[str, str]:
        """Return the experts whose adapters turned out to be of no use, and why."""
        return self._adapters.refused() if self._adapters else {}

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
        """Return the scheduler of the loaded model.

        Her own adapter is merged into the weights as long as no expert brings one. When the first one comes, the model
        is loaded anew as soon as nobody speaks; until then the base answers for it.
        """
        if self._closed.is_set():
            raise _was_closed()
        from adapters.language_model.transformers.experts import needs_unmerged
        from adapters.language_model.transformers.sources import adapter_folder

        if self._scheduler and (self._apart or self._working):
            return self._scheduler
        apart = needs_unmerged(self._experts) or adapter_folder(self._config)[0] is None
        return self._scheduler if self._scheduler and not apart else self._start(apart)

    def _start(self, apart: bool) -> "Scheduler":
        from adapters.language_model.transformers.caches import check_rewindable
        from adapters.language_model.transformers.experts import ExpertAdapters
        from adapters.language_model.transformers.loading import load
        from adapters.language_model.transformers.scheduling import BaseAlone, Scheduler

        self._stop()
        loaded = load(self._config, merge=not apart)
        check_rewindable(self._config.model, loaded.model)
        experts = self._experts if apart else None
        self._adapters = ExpertAdapters(loaded.model, experts, self._config) if experts else BaseAlone()
        self._scheduler, self._apart = Scheduler(loaded, self._adapters, self._config), apart
        return self._scheduler

    def _stop(self) -> None:
        if self._adapters:
            self._adapters.close()
        self._adapters = self._scheduler = None
        gc.collect()

    def _take(self, request: Request) -> None:
        self._ready().add(request)
        if not self._working:
            self._go_on()

    def _go_on(self) -> None:
        """Line the next piece of work up behind what has been asked meanwhile."""
        self._working = True
        self._thread.submit(self._work).add_done_callback(self._worked)

    def _work(self) -> None:
        self._working = False
        if self._scheduler and not self._closed.is_set() and self._scheduler.work():
            self._go_on()

    def _worked(self, work: Future[None]) -> None:
        """Let nobody wait for ever when something went wrong that nobody foresaw."""
        if (error := work.exception()) and self._scheduler:
            self._scheduler.fail(error)

    def _unload(self) -> None:
        if self._scheduler:
            self._scheduler.fail(_was_closed())
        self._stop()


def _was_closed() -> BackendUnavailable:
    return BackendUnavailable("The model was closed.", "Start the program again.")
